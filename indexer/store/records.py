"""The values that a store gives out: videos, their segments and captions. Imports nothing of the package.

The values that go into the catalogue: where a video lies, and what was encoded of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer.store.shards import Place

VideoState = Literal["pending", "indexed", "failed"]
"""``pending``: found and hashed, not yet encoded. ``failed``: could not be read; the reason is recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A time window of a video, the unit that is embedded and ranked.

    ``start_seconds`` and ``end_seconds`` count from the video's first frame; ``timestamps_seconds`` is ``(F,)``
    float64, the time of each frame whose features are stored, on the same clock.
    """

    segment_id: int
    video_id: str
    number: int
    start_seconds: float
    end_seconds: float
    timestamps_seconds: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A text that can be found from a video. ``video_id`` is None for a caption that belongs to no video."""

    caption_id: int
    video_id: str | None
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """A file, identified by the SHA-256 of its bytes (64 hex digits).

    ``paths`` holds every place where these bytes were found, ``path`` the first of them, None once the content of the
    only one was replaced. ``duration_seconds``, ``width`` and ``height`` are None unless ``state`` is
    ``indexed``. ``title`` is what it was called, else the name of its file without the ending. ``reason`` says why a
    video failed, or what could not be read of one that was indexed.
    """

    video_id: str
    title: str
    path: str | None
    paths: tuple[str, ...]
    duration_seconds: float | None
    width: int | None
    height: int | None
    size_bytes: int
    tags: tuple[str, ...]
    state: VideoState
    reason: str | None
    segments: tuple[Segment, ...]
    captions: tuple[Caption, ...]


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
