"""``emcl index bank``: the query bank by which searches can be normalised against hubs. Mounted by ``indexer.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexer.encoder_options import Device

app = typer.Typer()


@app.command()
def bank(
    store: Annotated[Path, typer.Option(help="Folder of the store.")],
    captions: Annotated[
        Path,
        typer.Option(
            exists=True,
            help="Texts like the queries to come, best those that the model was trained on: JSON lines with "
            "`captions`, or .txt with one a line.",
        ),
    ],
    size: Annotated[int, typer.Option(min=1, help="Most texts, drawn at random.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    beta: Annotated[float, typer.Option(min=0.01, max=1000, help="QB-Norm's inverse temperature.")] = 20.0,
    top: Annotated[int, typer.Option(min=1, help="Segments that each text marks as hubs.")] = 1,
    device: Device = "auto",
) -> None:
    """Compute the query bank that `normalise: qb-norm` of a search needs. Run it again after many videos were added.

    A running service takes it up when its index is reloaded (`POST /v1/index/reload`).
    """
    from indexer.errors import NotAStore
    from indexer.options import recorded_settings
    from indexer.store.query_bank import compute_bank, report_lines, write_bank
    from indexer.store.reader import StoreReader
    from model.encoder import load_encoder
    from model.evaluate.query_bank import open_bank

    recorded = recorded_settings(store)
    if recorded is None:
        raise NotAStore(f"{store} holds no store; make one with `emcl index build PATH --store {store}`")
    texts = open_bank(str(captions), None, size=size, seed=seed, beta=beta, top=top)
    spec = recorded.model_spec
    encoder = load_encoder(spec.model, pretrained=spec.pretrained, device=device)
    with StoreReader.open(store, fingerprint=encoder.fingerprint) as reader:
        computed = compute_bank(reader, encoder, texts)
    write_bank(store, computed)
    for line in report_lines(computed, texts.texts):
        typer.echo(line)
