"""The sound of a video as one channel of samples, for speech recognition; read as carefully as its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.video.container import OpenVideo, open_video
from model.video.types import DecodeLimits, Source

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

SAMPLES_PER_SECOND = 16_000

_NO_LIMITS = DecodeLimits()


def decode_sound(source: Source, limits: DecodeLimits = _NO_LIMITS) -> tuple[NDArray[np.float32], float] | None:
    """The first sound track: samples ``(N,)`` in [-1, 1] at 16 kHz, and when the first is heard, in seconds from the
    video's first frame. None for a video without sound; damaged packets are passed over.

    Raises the errors of ``model.video.types``.
    """
    import av

    with open_video(source, limits) as video:
        if not video.container.streams.audio:
            return None
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLES_PER_SECOND)
        start: float | None = None
        parts = []
        for frame in _frames(video):
            if start is None and frame.time is not None:
                start = frame.time - video.origin * video.tick_seconds
            parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        parts += [part.to_ndarray()[0] for part in resampler.resample(None)] if parts else []
        if not parts:
            return None
        samples_N: NDArray[np.float32] = np.concatenate(parts).astype(np.float32) / np.float32(32768)
        return samples_N, start or 0.0


def _frames(video: OpenVideo) -> Iterator[AudioFrame]:
    import av

    video.rewind(None)
    stream = video.container.streams.audio[0]
    stream.discard = av.stream.Discard.default
    video.stream.discard = av.stream.Discard.all
    for packet in video.packets_of(stream):
        with suppress(av.FFmpegError):
            yield from stream.codec_context.decode(packet if packet.size else None)
