"""Options of ``emcl index build|create|rebuild`` about the kind of index."""

from __future__ import annotations

from typing import Annotated

import typer

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
