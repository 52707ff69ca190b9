"""Videos → sampled frames: the decoder that training, indexing and the service share, so that they sample alike.

Input: a path or bytes. Output: ``FrameBatch``, upright RGB frames with their times. Torch-free and quick to import, so
that uploads can be decoded in a small fenced process.

**Frames** are upright: the rotation tag is applied. Pixels are the stored ones: a sample aspect ratio other than 1:1 is
not applied, as the reference does not; alpha is dropped; 10 bits become 8; HDR is not tone-mapped.

**Time** counts from the first frame that is shown; the container's own start time is subtracted.

**Which frames** (``sampling`` over the window ``[start_seconds, end_seconds)``, cut at the end of the video):

1. Target times ``start + i / sample_fps``, i = 0, 1, …, before the window's end; at least the start itself.
2. More than ``max_frames`` of them are thinned to ``linspace(0, n - 1, max_frames)`` truncated to integers, which is
   the reference's rule (specification 3.2) and keeps the first and the last target.
3. ``uniform``: to each target belongs the frame on screen at that time, the last with ``timestamp <= target``
   (+ 0.6 ms, because Matroska and FLV round timestamps to milliseconds).
   ``keyframes``: to each target belongs the nearest key frame of the window; a window without a key frame gives the
   frame at its start. Many times faster, because nothing between key frames is decoded, but other frames: not for
   evaluation.
4. A frame that belongs to several targets is taken once.

Times come from the packets, so both backends, constant and variable frame rates, and windows and whole videos agree on
the frames. Damaged frames: see ``model.video.pyav.fetch``.

**Backends.** PyAV reads everything. decord gives the same frames for the plain files that it reads
(``model.video.decord``), but takes longer than the PyAV backend, which decodes only what the wanted frames need
(``benchmarks/decode.py`` measures both), and some damaged files crash the whole process in it. So ``"auto"`` is PyAV
for every file, and decord serves to compare with results that were made with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model.video import decord, pyav
from model.video.container import OpenVideo, open_video
from model.video.recording import Recording, recording_of
from model.video.timeline import PacketTable, measure_end, scan
from model.video.types import (
    ROUNDING_SECONDS,
    Backend,
    BackendUnavailable,
    DecodeLimits,
    FrameBatch,
    NoFrames,
    NotAVideo,
    NoVideoStream,
    OverLimit,
    Source,
    VideoError,
    VideoInfo,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from model.config import SamplingConfig

__all__ = [
    "Backend",
    "BackendUnavailable",
    "DecodeLimits",
    "FrameBatch",
    "NoFrames",
    "NoVideoStream",
    "NotAVideo",
    "OverLimit",
    "Source",
    "VideoError",
    "VideoInfo",
    "decode",
    "decode_frame",
    "decode_frames",
    "frame_times",
    "probe",
    "read_recording",
]

NO_LIMITS = DecodeLimits()
_SEEK_GAP_SECONDS = 10.0  # what lies between is read faster than a seek back to a key frame costs, as a rule


def probe(source: Source, limits: DecodeLimits = NO_LIMITS) -> VideoInfo:
    """Measure a video without decoding more than its first frame.

    Raises the errors of ``model.video.types``. Broken frames at the beginning are passed over.
    """
    with open_video(source, limits) as video:
        end = _measured_end(video)
        matrix, width, height = pyav.first_orientation(video)
        return VideoInfo(
            duration_seconds=video.seconds(end),
            width=width,
            height=height,
            codec=video.codec,
            frame_rate=video.frame_rate,
            rotation_degrees=pyav.rotation_degrees(matrix),
            notes=video.notes(),
            recording=recording_of(video.container.metadata, video.stream.metadata),
        )


def read_recording(source: Source, limits: DecodeLimits = NO_LIMITS) -> Recording:
    """When, where and with what a video was recorded, from its header alone. Raises as ``probe`` does."""
    with open_video(source, limits) as video:
        return recording_of(video.container.metadata, video.stream.metadata)


def frame_times(source: Source, limits: DecodeLimits = NO_LIMITS) -> NDArray[np.float64]:
    """When each frame is shown, ``(N,)`` ascending seconds from the first, by reading all packets and decoding none.

    Raises the errors of ``model.video.types``.
    """
    with open_video(source, limits) as video:
        times = scan(video, video.origin, None).times
        ticks = times[times >= video.origin] - video.origin
        return np.asarray(ticks * video.tick_seconds, np.float64)


def decode(
    source: Source,
    *,
    sampling: SamplingConfig,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    limits: DecodeLimits = NO_LIMITS,
    backend: Backend = "auto",
    threads: int = 1,
) -> FrameBatch:
    """Sample frames of the window ``[start_seconds, end_seconds)``; ``None`` is the end of the video.

    A backend that is named is used or raises ``BackendUnavailable``; ``"auto"`` is PyAV (see above). ``threads`` are
    the codec's: callers usually run one process per core. Raises ``NoFrames`` for a window behind the end of the
    video, ``ValueError`` for a window that is none, and the errors of ``model.video.types``.
    """
    _check_window(start_seconds, end_seconds)
    with open_video(source, limits, threads) as video:
        duration = video.seconds(_measured_end(video))
        if start_seconds > 0 and start_seconds >= duration:
            raise NoFrames(
                f"the window starts at {start_seconds:g} s, but {video.label} lasts {duration:.3f} s; "
                "ask for a window inside the video"
            )
        until = duration if end_seconds is None else min(end_seconds, duration)
        targets = target_times(sampling, start_seconds, until)
        end = video.origin + int(np.ceil(until / video.tick_seconds - 1e-6))
        table = scan(video, video.time(start_seconds + ROUNDING_SECONDS), None if end_seconds is None else end)
        wanted = _frames_of(targets, table, video, sampling, end)
        if backend == "decord":
            frames, times = _fetch_by_decord(source, video, wanted, threads), wanted
        else:
            frames, times = pyav.fetch(video, table, wanted, end)
        return FrameBatch(
            frames=frames,
            timestamps_seconds=np.maximum([video.seconds(time) for time in times], start_seconds),
            duration_seconds=duration,
            width=frames.shape[2],
            height=frames.shape[1],
            skipped_packets=video.skipped_packets,
        )


def decode_frame(source: Source, at_seconds: float, *, limits: DecodeLimits = NO_LIMITS) -> NDArray[np.uint8]:
    """The frame on screen at a time, ``(H, W, 3)`` uint8 RGB upright; behind the end, the last frame (thumbnails)."""
    _check_window(at_seconds, None)
    with open_video(source, limits) as video:
        time = min(video.time(at_seconds + ROUNDING_SECONDS), _measured_end(video) - 1)
        table = scan(video, time, time + 1)
        wanted = _shown_at(np.array([time]), table.times)
        frames, _ = pyav.fetch(video, table, wanted, None)
        first: NDArray[np.uint8] = frames[0]
        return first


def decode_frames(
    source: Source, at_seconds: Sequence[float], *, side: int | None = None, limits: DecodeLimits = NO_LIMITS
) -> list[NDArray[np.uint8]]:
    """The frames on screen at several times, each as ``decode_frame`` gives it, in one pass over the video.

    With ``side``, frames that are wider or higher are scaled down to as many pixels. Times far apart are sought, so
    that of a long video only what surrounds them is read.
    """
    for seconds in at_seconds:
        _check_window(seconds, None)
    with open_video(source, limits) as video:
        last = _measured_end(video) - 1
        ticks = np.array([min(video.time(seconds + ROUNDING_SECONDS), last) for seconds in at_seconds], np.int64)
        order = np.argsort(ticks, kind="stable")
        gaps = np.flatnonzero(np.diff(ticks[order]) * video.tick_seconds > _SEEK_GAP_SECONDS) + 1
        found: dict[int, NDArray[np.uint8]] = {}
        for group in np.split(order, gaps):
            table = scan(video, int(ticks[group[0]]), int(ticks[group[-1]]) + 1)
            shown = table.times[np.maximum(np.searchsorted(table.times, ticks[group], side="right") - 1, 0)]
            frames, times = pyav.fetch(video, table, _distinct(shown), None, side)
            places = np.maximum(np.searchsorted(times, shown, side="right") - 1, 0)  # damaged frames are left out
            found |= {int(number): frames[place] for number, place in zip(group, places, strict=True)}
        return [found[number] for number in range(len(ticks))]


def _fetch_by_decord(source: Source, video: OpenVideo, wanted: list[int], threads: int) -> NDArray[np.uint8]:
    if isinstance(source, bytes):
        raise BackendUnavailable("decord is not given bytes, because damaged ones crash it; pass a path, or 'auto'")
    whole = scan(video, video.origin, None)
    matrix, _, _ = pyav.first_orientation(video)
    reason = decord.objection(video, turned=matrix != pyav.IDENTITY)
    if reason:
        raise BackendUnavailable(f"decord cannot be used for {video.label}: {reason}; use backend='auto' or 'pyav'")
    return decord.fetch(source, video, whole, wanted, threads)


def target_times(sampling: SamplingConfig, start_seconds: float, end_seconds: float) -> NDArray[np.float64]:
    """Steps 1 and 2 of the sampling rule: ``(T,)`` seconds, 1 <= T <= ``max_frames``."""
    # A window of 3 s at 1 fps has 3 targets even if it was computed as 3.0000000001 s.
    count = max(1, int(np.ceil((end_seconds - start_seconds) * sampling.sample_fps - 1e-6)))
    numbers = np.linspace(0, count - 1, min(count, sampling.max_frames)).astype(np.int64)
    return start_seconds + numbers / sampling.sample_fps


def _check_window(start_seconds: float, end_seconds: float | None) -> None:
    if not (np.isfinite(start_seconds) and start_seconds >= 0):
        raise ValueError(f"a window starts at 0 s or later, got {start_seconds}")
    if end_seconds is not None and not end_seconds > start_seconds:
        raise ValueError(f"a window ends after its start ({start_seconds:g} s), got an end of {end_seconds}")


def _measured_end(video: OpenVideo) -> int:
    end = measure_end(video)
    video.limits.check_seconds(video.seconds(end))
    return end


def _frames_of(
    targets: NDArray[np.float64], table: PacketTable, video: OpenVideo, sampling: SamplingConfig, end: int
) -> list[int]:
    """Steps 3 and 4: the sorted distinct timestamps of the frames that belong to the targets."""
    ticks = np.floor((targets + ROUNDING_SECONDS) / video.tick_seconds).astype(np.int64) + video.origin
    if sampling.strategy == "uniform":
        return _shown_at(ticks, table.times)
    in_window = (table.keys - video.origin) * video.tick_seconds > targets[0] - ROUNDING_SECONDS
    keys = table.keys[in_window & (table.keys < end)]
    if not len(keys):
        return _shown_at(ticks[:1], table.times)
    return _distinct(keys[np.abs(ticks[:, None] - keys).argmin(axis=1)])


def _shown_at(ticks: NDArray[np.int64], times: NDArray[np.int64]) -> list[int]:
    """The frames on screen at ``ticks``: the last not after each, or the first of all."""
    positions = np.searchsorted(times, ticks, side="right") - 1
    return _distinct(times[np.maximum(positions, 0)])


def _distinct(times: NDArray[np.int64]) -> list[int]:
    return [int(time) for time in np.unique(times)]
