"""Decoding a video that is to be indexed: cut into the same windows as by ``emcl index``, but behind the fence.

In: an open file with a stranger's bytes. Out: its windows a few at a time, as frames ready for the image tower. Each
few are decoded in a process of their own (``service.media.sandbox``), so that neither memory nor the limits of
processor and wall time depend on how long the video is.

Legend: F frames, S image size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.media.sandbox import Fence, Leash

if TYPE_CHECKING:
    from model.config import SamplingConfig

WINDOWS_AT_ONCE = 8
"""About a hundred frames, as ``indexer.build.encode`` encodes together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """One window: ``frames_FSSC`` uint8 RGB and the time of each, or the ``reason`` why it could not be read."""

    number: int
    frames_FSSC: NDArray[np.uint8] | None = None
    timestamps_seconds: NDArray[np.float64] | None = None
    skipped_packets: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowBatch:
    """A few of the ``total`` windows of a video, with its facts."""

    duration_seconds: float
    width: int
    height: int
    total: int
    windows: list[Window]


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """How a store cuts and samples its videos; ``image_size`` is the side of the square frames."""

    sampling: SamplingConfig
    segment_seconds: float
    image_size: int


def decode_windows(fence: Fence, file: IO[bytes], plan: WindowPlan, leash: Leash) -> Iterator[WindowBatch]:
    """All windows of the video in ``file``, in order. Raises as ``Fence.decode`` does, at the first window at most."""
    first, total = 0, 1
    while first < total:
        file.seek(0)
        batch = _decode(fence, file, plan, first, leash)
        yield batch
        first, total = first + WINDOWS_AT_ONCE, batch.total


def _decode(fence: Fence, file: IO[bytes], plan: WindowPlan, first: int, leash: Leash) -> WindowBatch:
    asked = {"segment_seconds": plan.segment_seconds, "first": first, "count": WINDOWS_AT_ONCE}
    job = {**fence.job(plan.sampling, plan.image_size), "windows": asked}
    head, _, rest = fence.answer(job, file, leash, arrays=WINDOWS_AT_ONCE).partition(b"\n")
    header = json.loads(head)
    if "error" in header:
        raise fence.refusal(header["error"], header["message"])
    arrays = io.BytesIO(rest)
    windows = [_window(facts, arrays, plan) for facts in header["segments"]]
    size = (int(header["width"]), int(header["height"]))
    return WindowBatch(
        duration_seconds=float(header["duration_seconds"]),
        width=size[0],
        height=size[1],
        total=int(header["windows"]),
        windows=windows,
    )


def _window(facts: dict[str, object], arrays: IO[bytes], plan: WindowPlan) -> Window:
    number = int(str(facts["number"]))
    if "reason" in facts:
        return Window(number=number, reason=str(facts["reason"]))
    frames, times = np.load(arrays, allow_pickle=False), np.load(arrays, allow_pickle=False)
    side = plan.image_size
    if (
        frames.dtype != np.uint8
        or frames.shape[1:] != (side, side, 3)
        or not 1 <= len(frames) <= plan.sampling.max_frames
        or times.dtype != np.float64
        or times.shape != frames.shape[:1]
    ):
        raise ValueError(f"the decoding process returned frames of shape {frames.shape} and times of {times.shape}")
    return Window(
        number=number,
        frames_FSSC=frames,
        timestamps_seconds=times,
        skipped_packets=int(str(facts["skipped_packets"])),
    )
