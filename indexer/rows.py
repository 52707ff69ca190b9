"""The values that go into the catalogue: where a video lies, and what was encoded of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.features import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A place where a video's bytes were found, with what ``stat`` said then."""

    path: str
    video_id: str
    size_bytes: int
    modified_ns: int


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
