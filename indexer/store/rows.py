"""The values that go into the catalogue: where a video lies, and what was encoded of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from indexer.store.shards import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A place where a video's bytes were found, with what ``stat`` said then.

    ``path`` is a file, a URL, or ``SHARD!MEMBER`` for a member of a tar file. What is no file has its version in
    ``modified_ns``: a number that changes with it, or -1 where nothing tells. ``file`` is a copy that can be read while
    this run lasts; it is not part of what is recorded.
    """

    path: str
    video_id: str
    size_bytes: int
    modified_ns: int
    file: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class SegmentRow:
    """A segment as it is committed: its window, and where its features lie."""

    number: int
    start_seconds: float
    end_seconds: float
    timestamps_seconds: npt.NDArray[np.float64]
    frames: Place
    pooled: Place


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """A video that was encoded, as it is committed together with its segments."""

    video_id: str
    duration_seconds: float
    width: int
    height: int
    reason: str | None
    segments: Sequence[SegmentRow]


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """A caption as it is committed."""

    video_id: str | None
    text: str
    place: Place


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """A tar shard or a URL that was read: to its end if ``complete``; ``reason`` says what of it could not be used.

    ``size_bytes`` is -1 where the file system does not tell; ``version`` as in ``Location.modified_ns``.
    """

    name: str
    size_bytes: int
    version: int
    complete: bool
    reason: str | None
