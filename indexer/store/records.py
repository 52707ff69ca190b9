"""The values of a store: videos, segments and captions as readers return them, and the rows that a writer commits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer.sources.transcripts import Cue
from indexer.store.shards import Place
from model.video.recording import UNKNOWN_RECORDING, Recording
from model.video.types import CLOCK_NOTE

VideoState = Literal["pending", "indexed", "failed"]
"""``pending``: found and hashed, not yet encoded. ``failed``: could not be read; the reason is recorded."""


Origin = Literal["http", "file", "speech", "track"]
"""Where a transcript came from: a request, a file, speech recognition, or a subtitle track of the video itself. What
stands first here is not replaced by what stands behind it."""

VideoOrder = Literal["id", "newest", "recorded", "title", "longest", "shortest"]
"""``newest``: the videos that were encoded last come first; those without segments (failed, pending) come at the end.
``recorded``: those recorded last come first.
Ties, and ``id``, are in the order of ids."""


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
    video failed, or what could not be read of one that was indexed. ``recording`` says when, where and with what it was
    recorded; its time is that of the file where the video itself says none.
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
    recording: Recording = UNKNOWN_RECORDING

    @property
    def has_broken_clock(self) -> bool:
        """Whether its times were made continuous when it was indexed; others need not be looked at again for that."""
        return CLOCK_NOTE in (self.reason or "")


@dataclass(frozen=True, kw_only=True)
class SegmentRow:
    """A segment as it is committed: its window, and the places of its features."""

    number: int
    start_seconds: float
    end_seconds: float
    timestamps_seconds: npt.NDArray[np.float64]
    frames: Place
    pooled: Place


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """A video that was encoded, as it is committed together with its segments and the subtitle tracks of its file."""

    video_id: str
    duration_seconds: float
    width: int
    height: int
    reason: str | None
    segments: Sequence[SegmentRow]
    transcripts: Sequence[TranscriptRow] = ()
    recording: Recording = UNKNOWN_RECORDING


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """A caption as it is committed."""

    video_id: str | None
    text: str
    place: Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """A transcript that a video has: its language (BCP 47, ``und`` if not known), its origin, how many cues."""

    language: str
    origin: Origin
    cues: int


@dataclass(frozen=True, kw_only=True)
class TranscriptRow:
    """A transcript as it is committed. ``source`` is the file or track that it came from, ``version`` recognises its
    content. Without cues it says that the transcript in this language was removed.
    """

    language: str
    origin: Origin
    source: str
    version: str
    cues: Sequence[Cue]
