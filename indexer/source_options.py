"""Options of ``emcl index build`` and ``add`` about where videos come from. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer

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
