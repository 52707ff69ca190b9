"""The one command, ``emcl``: its own commands, and those of the model and the indexer.

Heavy modules are imported inside the commands, so that ``--help`` answers at once. A ``ValueError`` or a file that
cannot be read is the user's to mend: it is printed as one line, and the exit code is 1 (2 for wrong usage).
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from indexer.cli import app as index_app
from model.cli import app as model_app
from service.cli_options import takes_settings
from service.doctor.cli import doctor
from service.jobs.cli import app as jobs_app
from service.jobs.cli import worker
from service.keys_cli import app as keys_app
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from service.search.engine import Engine
    from service.search.query import Ranking

app = typer.Typer(
    help="Find videos with words, and words with a video.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(model_app)
app.add_typer(index_app, name="index")
app.add_typer(keys_app, name="keys")
app.add_typer(jobs_app, name="jobs")
app.command()(worker)
app.command()(doctor)

_GC_THRESHOLDS = (50_000, 20, 50)

logger = logging.getLogger("service.cli")  # not "__main__", which it is when run with -m

# Options of `search` that are settings of the service too, and the settings that `demo` decides itself.
_MODEL_SETTINGS = ("store", "model", "pretrained", "device", "runtime", "precision", "exports", "threads")
_DEMO_DECIDES = ("store", "model", "pretrained")


def main() -> None:
    """Run the command line; the console script."""
    try:
        app()
    except BrokenPipeError:  # what we write to, `head` perhaps, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


@app.command()
@takes_settings()
def serve(**options: Any) -> None:
    """Serve an index over HTTP: the page at /, the API at /v1, its description at /docs."""
    run_server(load_settings(options))


def run_server(settings: Settings) -> None:
    """Load everything, then serve until interrupted."""
    from service.observe.logs import logging_to_stderr

    with logging_to_stderr(settings.log_format, settings.log_level):
        _run_server(settings)


def _run_server(settings: Settings) -> None:
    import uvicorn

    from service.access.gate import open_keys
    from service.app import create_app
    from service.http.protocol import Connections, allow_open_files
    from service.services import build_engine

    open_keys(settings)  # a missing key is told before the model loads
    logger.info("loading the index %s and its model …", settings.store)
    engine = build_engine(settings)
    with engine.live.lease() as generation:
        counts = generation.reader.counts
    logger.info("%d videos, %d captions", counts.videos, counts.captions)
    allow_open_files(settings.max_connections)
    # A request makes a thousand objects and no cycles: looking for some in every one took a fiftieth of its time.
    gc.set_threshold(*_GC_THRESHOLDS)
    connections = Connections(max_connections=settings.max_connections, head_seconds=settings.request_timeout_seconds)
    uvicorn.run(
        create_app(settings, engine),
        host=settings.host.strip("[]"),
        port=settings.port,
        log_level=settings.log_level,
        log_config=None,  # its lines go where ours go
        access_log=False,  # service.observe.metrics writes one line for each request
        http=connections.protocol,
        loop="asyncio",  # with uvloop new connections starve while others keep it busy (docs/performance.md)
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=10,
    )


@app.command()
@takes_settings(*(name for name in Settings.model_fields if name not in _DEMO_DECIDES))
def demo(
    folder: Annotated[Path, typer.Option(help="Where clips and index are kept; a second call uses them.")] = Path(
        "var/demo"
    ),
    count: Annotated[int, typer.Option(min=10, help="Number of clips.")] = 300,
    prepare_only: Annotated[bool, typer.Option(help="Make clips and index, but do not serve.")] = False,
    **options: Any,
) -> None:
    """Serve a generated corpus: clips of moving shapes that the shipped model never saw. Needs no network."""
    from service.demo import examples, prepare

    settings = load_settings({**options, "store": folder / "store", "model": "demo"})
    prepare(folder, count, say=lambda text: typer.echo(text, err=True))
    if not prepare_only:
        for text in examples(folder):
            typer.echo(f"try: {text}", err=True)
        run_server(settings)


@app.command()
@takes_settings(*_MODEL_SETTINGS)
def search(
    text: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    video: Annotated[Path | None, typer.Option(help="A video to find captions and similar videos for.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Most results.")] = 10,
    offset: Annotated[int, typer.Option(help="Results to leave out before the first.")] = 0,
    candidates: Annotated[
        int | None, typer.Option(help="What stage 1 hands to the reranking. Default: the checkpoint's, mostly 100.")
    ] = None,
    rerank: Annotated[
        Literal["emcl", "none", "frozen"],
        typer.Option(help="emcl, none (pooling without EMCL) or frozen (stage 1 alone)."),
    ] = "emcl",
    group: Annotated[Literal["video", "segment"], typer.Option(help="Best segment of each video, or all.")] = "video",
    tag: Annotated[list[str] | None, typer.Option(help="Only videos with this tag; may be repeated.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Only videos at least this long.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Only videos at most this long.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as the API answers.")] = False,
    **options: Any,
) -> None:
    """Search an index with words, or with a video."""
    from service.schemas.search import SearchAnswer
    from service.search.query import Ranking, SearchQuery, VideoFilter
    from service.services import build_engine
    from service.tables import hits_table

    if (text is None) == (video is None):
        raise typer.BadParameter("give either words or --video FILE")
    ranking = Ranking(k=k, offset=offset, candidates=candidates, rerank=rerank, group=group)
    engine = build_engine(load_settings(options))
    try:
        if video is not None:
            _search_by_video(engine, video, ranking, as_json)
            return
        wanted = VideoFilter(tags=tuple(tag or ()), min_seconds=min_seconds, max_seconds=max_seconds)
        query = SearchQuery(text=text, ranking=ranking, filter=wanted)
        engine.limits.check_search(query)
        answer = SearchAnswer.of(engine.search([query])[0])
        typer.echo(_json(answer) if as_json else hits_table(answer.hits))
    finally:
        engine.close()


def _search_by_video(engine: Engine, path: Path, ranking: Ranking, as_json: bool) -> None:
    from model.clip.preprocess import resize_and_crop
    from model.video.sampling import decode
    from service.schemas.search import UploadAnswer, UploadOut
    from service.search.query import UploadQuery
    from service.tables import captions_table, hits_table

    engine.limits.check_ranking(ranking)
    batch = decode(path, sampling=engine.sampling)
    query = UploadQuery(
        frames_FSSC=resize_and_crop(batch.frames, engine.encoder.image_size),
        timestamps_seconds=batch.timestamps_seconds,
        ranking=ranking,
    )
    decoded = UploadOut(duration_seconds=batch.duration_seconds, frames=len(batch))
    answer = UploadAnswer.of(engine.search_uploads([query])[0], decoded)
    if as_json:
        typer.echo(_json(answer))
    else:
        typer.echo(f"captions\n{captions_table(answer.captions)}\n\nsimilar videos\n{hits_table(answer.hits)}")


def _json(answer: Any) -> str:
    return json.dumps(answer.model_dump(mode="json"), indent=2, ensure_ascii=False)


if __name__ == "__main__":
    main()
