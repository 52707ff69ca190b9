"""Options of an indexing run, for the commands and for ``indexer.build.run``. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from indexer.sources.partition import WHOLE, Partition
from indexer.sources.url import FETCH_TIMEOUT_SECONDS
from model.cli_options import Shown
from model.config import Config

DECODE_TIMEOUT_SECONDS = 300.0
"""A task decodes the frames of one window; minutes mean that the file or the disk hangs."""


def _parsed(value: Any) -> Any:
    return Partition.parse(value) if isinstance(value, str) else value


class BuildOptions(Config):
    """How videos are read; each field is an option of ``emcl index build``, some are of ``add`` and ``watch``."""

    captions: Annotated[Path | None, Shown(exists=True, dir_okay=False)] = Field(
        None, description="JSONL or CSV with `video`, `captions`, optional `tags`. NAME.txt beside a video works too."
    )
    transcripts: Annotated[Path | None, Shown(exists=True, file_okay=False)] = Field(
        None,
        description="Folder with NAME.srt, NAME.vtt or Whisper's NAME.json (or NAME.LANG.srt) of videos. Those beside "
        "a video need no option.",
    )
    workers: int | None = Field(None, ge=1, description="Decoding processes. Default: one per core, at most 8.")
    timeout_seconds: Annotated[float, Shown(flag="--timeout")] = Field(
        DECODE_TIMEOUT_SECONDS, ge=1, description="Seconds that decoding one segment may take."
    )
    prune: bool = Field(False, description="Remove videos whose files are gone or were replaced.")
    force_prune: bool = Field(
        False, description="Prune even if a folder is empty, or if more than half of its videos are gone."
    )
    partition: Annotated[Partition, BeforeValidator(_parsed), Shown(flag="--partition", metavar="I/N")] = Field(
        WHOLE,
        description="Index part I of N (1/N to N/N); every machine computes the same split. See `emcl index merge`.",
    )
    protocols: Annotated[frozenset[str], Shown(flag="--allow-protocol", metavar="NAME")] = Field(
        frozenset(),
        description="Fetch URLs of this protocol, such as https or s3; repeatable. Default: nothing is fetched.",
    )
    keep_media: Annotated[bool, Shown(flag="--keep-media")] = Field(
        False, description="Copy videos of tar shards and URLs into the store, so that the service can show them."
    )
    rehash: Annotated[bool, Shown(flag="--rehash")] = Field(
        False,
        description="Hash all files again, also those with unchanged size, modification time and inode.",
    )
    retry_failed: Annotated[bool, Shown(flag="--retry-failed")] = Field(
        False,
        description="Read videos of unchanged shards and URLs again that could not be decoded. Files always are.",
    )
    within: Annotated[frozenset[Path], Shown(flag="--within", metavar="FOLDER")] = Field(
        frozenset(),
        description="Read only files inside this folder, with all links followed; repeatable. Default: anywhere.",
    )


class BuildRequest(BuildOptions):
    """What a run indexes, and how. ``paths`` are folders, files, globs, shards and URLs.

    Files in ``unsettled`` are still being written and are left out. Reading a shard or URL ends when nothing came for
    ``fetch_timeout_seconds``.
    """

    paths: Sequence[str]
    unsettled: frozenset[Path] = frozenset()
    fetch_timeout_seconds: float = FETCH_TIMEOUT_SECONDS

    @property
    def prunes(self) -> bool:
        """Whether videos without a file are removed; a folder that looks unmounted stops that without
        ``force_prune``.
        """
        return self.prune or self.force_prune
