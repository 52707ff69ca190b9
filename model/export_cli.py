"""``emcl export``: a faster runtime for a model, judged before it may be used. Mounted by ``model.cli``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer()


@app.command()
def export(
    model: Annotated[
        str | None,
        typer.Option(
            help="'demo', a checkpoint's path, or an open_clip name with --pretrained. Default: CLIP ViT-B-32 with "
            "OpenAI's weights.",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="Tag or weights file of an open_clip model.")] = None,
    runtime: Annotated[
        Literal["onnx", "onnx-int8", "torch-bf16"],
        typer.Option(
            help="onnx: fp32 by onnxruntime. onnx-int8: bytes, smallest and fastest on a CPU. torch-bf16 writes no "
            "model: it only judges whether `auto` may use bf16."
        ),
    ] = "onnx-int8",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the files; name it to the other commands with --exports. Default: NAME.exports beside the "
            "checkpoint, or var/exports for the demo model and open_clip names.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Judge by these videos: JSON lines of {video, captions}, or a folder with such a captions.jsonl. "
            "Default: generated scenes.",
            show_default=False,
        ),
    ] = None,
    sample_videos: Annotated[int, typer.Option(min=20, help="Most videos to judge by.")] = 96,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: one per core.")] = None,
) -> None:
    """Export a model's towers for a faster runtime, compare it with fp32, and refuse it if it ranks otherwise.

    `emcl serve`, `search` and `index` then take it by themselves (`--runtime auto`), or by name. Exit code 1 if it was
    refused; nothing uses it then.
    """
    import torch

    from model.encoder import export_store, load_encoder
    from model.export.export import export as export_towers
    from model.export.export import require_exporter
    from model.export.samples import generated_samples, samples_of

    require_exporter(runtime)
    if threads is not None:
        torch.set_num_threads(threads)
    encoder = load_encoder(model, pretrained=pretrained, device="cpu")
    if samples is None:
        chosen = generated_samples(sample_videos, image_size=encoder.image_size)
    else:
        sampling = encoder.config.sampling
        chosen = samples_of(samples, sample_videos, image_size=encoder.image_size, sampling=sampling)
    store = export_store(model, encoder.fingerprint, pretrained=pretrained, folder=output)
    report = export_towers(encoder, store, runtime, chosen)
    for line in report.lines():
        typer.echo(line)
    if not report.passed:
        typer.echo(
            f"{runtime} is not used for this model; the measurement is kept in {store.path_of(runtime)}", err=True
        )
        raise typer.Exit(1)
    typer.echo(f"exported: {store.path_of(runtime)}")
