"""``emcl index create``: a store without videos, for a service that takes them in. Mounted by ``indexer.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexer.encoder_options import Device, Pretrained
from indexer.index_options import Factory, IndexMemory, IndexRecall, SearchOptions

app = typer.Typer()


@app.command()
def create(
    store: Annotated[Path, typer.Option(help="Folder of the new store.")],
    model: Annotated[
        str | None,
        typer.Option(help="As for build. Default: CLIP ViT-B-32 with OpenAI's weights.", show_default=False),
    ] = None,
    pretrained: Pretrained = None,
    segment_seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Longer videos are cut into segments of this length. Default: 30.")
    ] = None,
    index: Factory = None,
    index_options: SearchOptions = None,
    index_memory: IndexMemory = None,
    index_recall: IndexRecall = None,
    device: Device = "auto",
) -> None:
    """Make an empty store, so that a service can start and take its first videos by `POST /v1/videos`.

    Until the next publication (`emcl index build|add|rebuild`, or a service that has taken in enough) stage 1 ranks
    without an EMCL map: there is no corpus yet to fit one on.
    """
    from indexer.cli_output import print_manifest
    from indexer.errors import StoreError
    from indexer.options import Wishes, bytes_of, choose_model, new_settings, recorded_settings
    from indexer.store.writer import StoreWriter
    from model.emcl.em import FrozenMap
    from model.encoder import load_encoder

    if recorded_settings(store) is not None:
        raise StoreError(f"{store} holds a store already; add to it with `emcl index add`, or name another folder")
    spec = choose_model(None, model, pretrained)
    encoder = load_encoder(spec.model, pretrained=spec.pretrained, device=device)
    wishes = Wishes(
        segment_seconds=segment_seconds,
        factory=index,
        options=index_options,
        index_memory=bytes_of(index_memory),
        index_recall=index_recall,
    )
    settings = new_settings(wishes, spec=spec, fingerprint=encoder.fingerprint, dim=encoder.dim, config=encoder.config)
    with StoreWriter.open(store, settings=settings) as writer:
        manifest = writer.publish(encoder, empty_map=FrozenMap.neutral(encoder.dim))
    print_manifest(manifest)
