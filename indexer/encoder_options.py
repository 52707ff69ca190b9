"""Options of ``emcl index`` about what encodes. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Model = Annotated[
    str | None,
    typer.Option(
        help="`demo`, a checkpoint's path, or an open_clip name with --pretrained. Default: the store's model; "
        "for a new store CLIP ViT-B-32 with OpenAI's weights."
    ),
]
Pretrained = Annotated[str | None, typer.Option(help="Tag or weights file of an open_clip model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Arithmetic of the encoder; auto as the runtime has it.")
]
Runtime = Annotated[
    Literal["auto", "torch", "torch-compiled", "onnx", "onnx-int8"],
    typer.Option(help="What computes the encoder; auto: the fastest that `emcl export` has judged, else torch."),
]
Exports = Annotated[
    Path | None, typer.Option(help="Folder of `emcl export`. Default: beside the checkpoint, or var/exports.")
]
