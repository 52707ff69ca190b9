"""``emcl engine``: an external vector engine (Milvus) as stage 1 of a store: create, fill, check, switch and drop
collections.

The engine is derived from the store: it can be dropped and filled again at any time, and nothing is lost with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from indexer.engine.milvus import MilvusEngine

INCOMPLETE = 3  # as in `emcl index`

app = typer.Typer(help="Use Milvus for stage 1 of large stores.", no_args_is_help=True)

Store = Annotated[Path, typer.Option(help="Folder of the store.")]
Engine = Annotated[
    str,
    typer.Option(
        envvar="EMCL_ENGINE",
        help="Address: milvus://USER:PASSWORD@HOST:19530/DATABASE (user and database may be left out), or milvus-lite:///FILE.db.",
    ),
]
Name = Annotated[str | None, typer.Option(help="Which collections, such as g1; default: those in use.")]

_TIMEOUT_SECONDS = 10.0


@contextmanager
def _connected(url: str, timeout_seconds: float = _TIMEOUT_SECONDS) -> Iterator[MilvusEngine]:
    from indexer.engine.milvus import MilvusEngine

    engine = MilvusEngine(url, timeout_seconds=timeout_seconds)
    try:
        yield engine
    finally:
        engine.close()


@app.command()
def create(
    store: Store,
    engine: Engine,
    prefix: Annotated[str, typer.Option(help="Prefix of the collections' names; use one for each store.")] = "emcl",
    index: Annotated[
        str, typer.Option(help="Index of the engine: auto (HNSW), HNSW, IVF_SQ8, IVF_FLAT, FLAT.")
    ] = "auto",
) -> None:
    """Create empty collections. From now on publications keep the correction (map and bases)."""
    from indexer.engine import follow

    with _connected(engine) as connected:
        name = follow.create(store, connected, prefix=prefix, index=index)
    typer.echo(f"{name} is made and empty; fill it with `emcl engine fill --store {store}`")


@app.command()
def fill(store: Store, engine: Engine, name: Name = None) -> None:
    """Write what the collections lack; continues where an interrupted fill stopped."""
    from indexer.build.progress import TerminalProgress
    from indexer.engine import follow
    from indexer.engine.state import need_state
    from indexer.store.reader import StoreReader

    need_state(store)
    with StoreReader.open(store) as reader:
        rows = reader.counts.segments + reader.counts.captions
    with _connected(engine) as connected, TerminalProgress().phase("fill", rows, "row") as bar:
        applied = follow.fill(store, connected, name, bar.advance)
    typer.echo(f"up to date with revision {applied.revision}")


@app.command()
def status(store: Store, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the collections, which are in use, and how far they are behind. Does not contact the engine."""
    from indexer.engine import follow
    from indexer.engine.state import need_state

    state, behind = need_state(store), follow.behind(store)
    if as_json:
        records = {
            name: {"index": record.index, "map": record.map_digest, "revision": record.applied_revision}
            for name, record in state.collections.items()
        }
        typer.echo(json.dumps({"current": state.current, "behind": behind, "collections": records}, indent=2))
        return
    for name, record in state.collections.items():
        where = "not filled yet" if record.applied_revision is None else f"revision {record.applied_revision}"
        used = f", in use, {behind} revisions behind" if name == state.current else ""
        typer.echo(f"{name}: {record.index}, map {record.map_digest[:12]}, {where}{used}")


@app.command()
def verify(store: Store, engine: Engine, name: Name = None) -> None:
    """Compare collections with the store: numbers of rows, and up to 1000 vectors of each. Exit code 3: they differ."""
    from indexer.engine import follow

    with _connected(engine) as connected:
        found = follow.verify(store, connected, name)
    for problem in found.problems:
        typer.echo(problem, err=True)
    typer.echo(f"{found.segments} segments, {found.captions} captions, {found.compared} vectors compared")
    if found.problems:
        raise typer.Exit(INCOMPLETE)


@app.command()
def switch(store: Store, engine: Engine, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Switch searches to other collections. Running services follow without a failed query."""
    from indexer.engine import follow

    with _connected(engine) as connected:
        follow.switch(store, connected, name)
    typer.echo(f"{name} is in use")


@app.command()
def drop(store: Store, engine: Engine, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Remove collections. The store itself keeps everything."""
    from indexer.engine import follow

    with _connected(engine) as connected:
        follow.drop(store, connected, name)
    typer.echo(f"{name} is dropped")
