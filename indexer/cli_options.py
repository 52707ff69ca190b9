"""Options of ``emcl index`` about what encodes. Imports nothing heavy.

Options of ``emcl index build|create|rebuild`` about the kind of index.

Options of ``emcl index build`` and ``add`` about where videos come from. Imports nothing heavy.
"""

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

Factory = Annotated[
    str | None,
    typer.Option(
        "--index",
        help="auto (chosen by size, memory and recall; the default of a new store), or a FAISS factory string: Flat "
        "(exact), HNSW32, 'IVF256,SQ8', … or CAGRA (on a GPU).",
    ),
]

SearchOptions = Annotated[
    str | None,
    typer.Option(
        "--index-options",
        help="FAISS search parameters of a named kind, such as nprobe=32 or efSearch=64, and refine=4: order four "
        "times as many by exact scores.",
    ),
]

IndexMemory = Annotated[
    str | None,
    typer.Option("--index-memory", help="For auto: memory that the indexes may take, such as 512MiB. Default: 4GiB."),
]

IndexRecall = Annotated[
    float | None,
    typer.Option(
        "--index-recall",
        min=0.01,
        max=1,
        help="For auto: share of the 100 nearest that must be found, measured on queries. Default: 0.98.",
    ),
]

AllowProtocol = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-protocol",
        metavar="NAME",
        help="Fetch URLs of this protocol, such as https or s3; may be given several times. Default: nothing is "
        "fetched.",
    ),
]

KeepMedia = Annotated[
    bool,
    typer.Option(
        "--keep-media",
        help="Copy videos of tar shards and URLs into the store, so that the service can show them.",
    ),
]

RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Read videos of unchanged shards and URLs again that could not be decoded. Files always are.",
    ),
]

PartitionOption = Annotated[
    str | None,
    typer.Option(
        "--partition",
        metavar="I/N",
        help="Index part I of N (1/N to N/N), which every machine works out alike; see `emcl index merge`.",
    ),
]
