"""Values and errors of the decoder: what ``model.video.sampling`` takes and gives. A leaf: imports nothing of the
package.

Errors, all ``ValueError`` so that a caller can treat "this input is unusable" as one case::

    VideoError
    ├── NotAVideo       the bytes are not a supported video container (text, picture, empty, cut off before its index)
    ├── NoVideoStream   a media file without moving pictures (an audio file; cover art does not count)
    ├── NoFrames        a video stream from which no frame can be decoded (in this window)
    └── OverLimit       larger, longer or bigger in pixels than the caller's ``DecodeLimits``
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.video.recording import UNKNOWN_RECORDING, Recording

Source: TypeAlias = "str | os.PathLike[str] | bytes"
Backend: TypeAlias = Literal["auto", "pyav", "decord"]


ROUNDING_SECONDS = 0.0006
"""Matroska, WebM and FLV store whole milliseconds: a frame may be marked up to half of one too late."""

CLOCK_NOTE = "its clock restarts or jumps"
"""What begins the note about a video whose times were made continuous."""


class VideoError(ValueError):
    """Base of errors about a video; the message says what is wrong and what to do next."""


class NotAVideo(VideoError):  # noqa: N818 - the public names say what the input is, not that it is an error
    """The input is not a video container that is read here."""


class NoVideoStream(VideoError):  # noqa: N818
    """The input is a media file, but no stream of it is a video that can be decoded."""


class NoFrames(VideoError):  # noqa: N818
    """The video stream, or the window asked for, holds no frame that can be decoded."""


class OverLimit(VideoError):  # noqa: N818
    """The input exceeds one of the caller's limits."""


class BackendUnavailable(VideoError):  # noqa: N818
    """The backend that was named explicitly is not installed or cannot read this file faithfully."""


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Limits of decoding; ``None`` means no limit.

    ``max_pixels`` is width times height of one frame. Limits are checked on the header's claims before anything is
    decoded, and again on what comes out, because headers can be wrong. Each check raises ``OverLimit``.

    ``check_clock`` False trusts the clock of containers without an index (MPEG-TS, MPEG-PS, Ogg). Otherwise such a file
    is read as a whole once, to find where its clock restarts or jumps (``model.video.clock``).
    """

    max_bytes: int | None = None
    max_seconds: float | None = None
    max_pixels: int | None = None
    check_clock: bool = True

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_seconds", "max_pixels"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"DecodeLimits.{name} is {value}; expected a positive number, or None for no limit")

    def check_bytes(self, size_bytes: int) -> None:
        """Raise ``OverLimit`` for an input of more than ``max_bytes`` bytes."""
        if self.max_bytes is not None and size_bytes > self.max_bytes:
            raise OverLimit(
                f"the video has {size_bytes:,} bytes, the limit is {self.max_bytes:,}; compress it or cut it shorter"
            )

    def check_seconds(self, duration_seconds: float) -> None:
        """Raise ``OverLimit`` for a video longer than ``max_seconds``."""
        if self.max_seconds is not None and duration_seconds > self.max_seconds:
            raise OverLimit(
                f"the video lasts {duration_seconds:.1f} s, the limit is {self.max_seconds:g} s; cut it shorter"
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Raise ``OverLimit`` for frames of more than ``max_pixels`` pixels."""
        if self.max_pixels is not None and width * height > self.max_pixels:
            raise OverLimit(
                f"the frames are {width} x {height} = {width * height:,} pixels, the limit is {self.max_pixels:,}; "
                "scale the video down"
            )


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts about a video, measured where possible.

    ``duration_seconds`` runs from the first frame's start to the last frame's end, as the packets say (headers of
    recordings and cut files often claim something else). ``width`` and ``height`` are those of the upright frames;
    ``rotation_degrees`` is the clockwise turn (0, 90, 180 or 270) that made them upright. ``codec`` is FFmpeg's name
    (``h264``, ``hevc``, ``vp9``, ``av1``, …), ``frame_rate`` the average number of frames per second (0 if unknown).
    ``notes`` say what a person should know: where times were made continuous, and streams that are not read.
    ``recording`` is what the container says about when, where and with what it was recorded.
    """

    duration_seconds: float
    width: int
    height: int
    codec: str
    frame_rate: float
    rotation_degrees: int
    notes: tuple[str, ...] = ()
    recording: Recording = UNKNOWN_RECORDING


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameBatch:
    """The sampled frames of one window of a video.

    ``frames`` is ``(F, H, W, 3)`` uint8 RGB, upright, F >= 1. ``timestamps_seconds`` is ``(F,)`` float64, strictly
    increasing, counted from the video's first frame: when each frame is first shown *within the window* (its own time,
    or the window's start for the frame that was already on screen). ``duration_seconds`` is that of the whole video,
    as in ``VideoInfo``. ``skipped_packets`` counts the packets that could not be read or decoded on the way.
    """

    frames: NDArray[np.uint8]
    timestamps_seconds: NDArray[np.float64]
    duration_seconds: float
    width: int
    height: int
    skipped_packets: int

    def __post_init__(self) -> None:
        count = len(self.timestamps_seconds)
        if count < 1 or self.frames.shape != (count, self.height, self.width, 3) or self.frames.dtype != np.uint8:
            raise ValueError(
                f"frames are {self.frames.dtype} {self.frames.shape}; "
                f"expected uint8 {(max(count, 1), self.height, self.width, 3)}"
            )
        if not np.all(np.diff(self.timestamps_seconds) > 0):
            raise ValueError(f"timestamps must increase strictly, got {self.timestamps_seconds.tolist()}")

    def __len__(self) -> int:
        return len(self.frames)
