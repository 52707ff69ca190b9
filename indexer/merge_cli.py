"""``emcl index merge`` and ``compact``: stores put together, and space given back. Mounted by ``indexer.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from indexer.encoder_options import Device

app = typer.Typer()


@app.command()
def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores of one model; they are only read.")],
    store: Annotated[Path, typer.Option(help="Folder of the merged store; made if need be, else added to.")],
    device: Device = "auto",
) -> None:
    """Put stores together that were built apart, such as the parts of `build --partition`, without encoding anything.

    A video that is in several is taken once; captions and tags are united. Run it again after an interruption.
    """
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, publish_if_changed
    from indexer.cli_output import print_manifest
    from indexer.store.merge import count_videos, read_merge_settings
    from indexer.store.merge import merge as merge_stores
    from indexer.store.writer import StoreWriter
    from model.encoder import load_encoder

    settings = read_merge_settings(stores, store)
    encoder = load_encoder(settings.model_spec.model, pretrained=settings.model_spec.pretrained, device=device)
    check_model(settings, encoder, stores[0])
    progress = TerminalProgress()
    with StoreWriter.open(store, settings=settings) as writer:
        with progress.phase("merge", count_videos(stores), "video") as bar:
            report = merge_stores(writer, stores, bar.advance)
        manifest = publish_if_changed(writer, encoder, progress)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(
        f"{report.videos} videos and {report.captions} captions copied, {report.known_videos} videos were there already"
    )
    if manifest is None:
        typer.echo("nothing to search yet, so nothing was published", err=True)
        return
    print_manifest(manifest)


@app.command()
def compact(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")],
    drop_former: Annotated[
        bool,
        typer.Option(
            "--drop-former",
            help="Remove the former generation too, so that the space is free at once and not after the next "
            "publication. Readers that have it open go on.",
        ),
    ] = False,
    device: Device = "auto",
) -> None:
    """Give back the space of removed videos and captions: shards are written anew without their rows, and published."""
    from indexer.build.progress import TerminalProgress
    from indexer.build.run import check_model, current_manifest, publish_if_changed
    from indexer.cli_output import print_compaction, print_manifest
    from indexer.errors import NotAStore
    from indexer.options import recorded_settings
    from indexer.store.compact import compact as compact_store
    from indexer.store.compact import drop_former as drop_former_generations
    from indexer.store.writer import StoreWriter
    from model.encoder import load_encoder

    settings = recorded_settings(store)
    if settings is None:
        raise NotAStore(f"{store} holds no store; make one with `emcl index build PATH --store {store}`")
    encoder = load_encoder(settings.model_spec.model, pretrained=settings.model_spec.pretrained, device=device)
    check_model(settings, encoder, store)
    progress = TerminalProgress()
    with StoreWriter.open(store) as writer:
        with progress.phase("compact", 0, "row") as bar:
            done = compact_store(writer, bar.advance)
        if current_manifest(store) is not None:
            manifest = publish_if_changed(writer, encoder, progress)
            if drop_former:
                drop_former_generations(writer)
            print_compaction(writer, done)
            if manifest is not None:
                print_manifest(manifest)
        else:
            print_compaction(writer, done)
