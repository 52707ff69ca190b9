"""What a child of ``service.media.fork_server`` does to make a preview or a clip; the service itself never imports it.

Takes its job, the video as standard input and the file to write as standard output, both regular files. Reports in one
JSON line on standard error what is wrong with the video. Limits are set before a byte of the video is read.
"""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from model.video.container import open_video
from model.video.pyav import Decoder, display_matrix, make_upright
from model.video.sampling import DecodeLimits, OverLimit
from service.media.clips import Clip, write_clip
from service.media.process_limits import limit_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from model.video.container import OpenVideo

_TICK = Fraction(1, 90_000)
_OPTIONS = {"preset": "veryfast", "crf": "26", "threads": "1"}
_KEY_EVERY = 48  # frames: a browser that seeks decodes at most so many


def main(job: dict[str, Any]) -> int:
    """Do one job; the exit code is 1 for a video of which it cannot be made."""
    source = os.dup(0)
    target = os.fdopen(os.dup(1), "w+b")
    complaint = os.fdopen(os.dup(2), "w")
    silence = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silence, number)
    limit_process(cpu_seconds=job["cpu_seconds"], memory_bytes=job["memory_bytes"], file_bytes=job["max_bytes"])
    try:
        with target:
            path = Path(f"/proc/self/fd/{source}")
            if job["clip"] is None:
                write_preview(path, target, job["side"], _limits(job))
            else:
                limits = DecodeLimits(max_pixels=job["max_pixels"], check_clock=job["check_clock"])
                write_clip(path, target, Clip(**job["clip"]), limits)
    except Exception as error:  # whatever an untrusted file provokes is reported, by type
        json.dump({"error": type(error).__name__, "message": str(error)[:1000]}, complaint)
        complaint.flush()
        return 1
    return 0


def _limits(job: dict[str, Any]) -> DecodeLimits:
    return DecodeLimits(max_seconds=job["max_seconds"], max_pixels=job["max_pixels"], check_clock=job["check_clock"])


def write_preview(source: Path, target: IO[bytes], side: int, limits: DecodeLimits) -> None:
    """Write the pictures of a video as H.264 in MP4: upright, at most ``side`` pixels wide or high, without sound.

    Times are those of the video, from its first frame. Raises ``VideoError``.
    """
    import av

    with open_video(source, limits) as video, av.open(target, "w", format="mp4") as out:
        stream: VideoStream | None = None
        last = -1
        for time, frame in _frames(video):
            seconds = video.seconds(time)
            if limits.max_seconds is not None and seconds > limits.max_seconds:
                raise OverLimit(f"the video is longer than {limits.max_seconds:g} seconds")
            limits.check_pixels(frame.width, frame.height)
            ticks = round(seconds / _TICK)
            if ticks <= last:
                continue  # damaged files repeat times
            last = ticks
            stream = _write(out, stream, frame, ticks, side)
        if stream is None:
            raise video.no_frames()
        out.mux(stream.encode(None))


def _frames(video: OpenVideo) -> Iterator[tuple[int, VideoFrame]]:
    video.rewind(None)
    decoder = Decoder(video)
    for packet in video.packets():
        yield from decoder.feed(packet, needed=True)
    yield from decoder.drain()


def _write(out: OutputContainer, stream: VideoStream | None, frame: VideoFrame, ticks: int, side: int) -> VideoStream:
    import av

    scale = min(1.0, side / max(frame.width, frame.height))
    width, height = (max(2, 2 * round(length * scale / 2)) for length in (frame.width, frame.height))
    stored = np.asarray(frame.to_ndarray(format="rgb24", width=width, height=height), np.uint8)
    pixels = make_upright(stored, display_matrix(frame))
    if stream is None:
        stream = out.add_stream("libx264", rate=30, options=_OPTIONS)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TICK
        stream.codec_context.gop_size = _KEY_EVERY
    picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        width=stream.width, height=stream.height, format="yuv420p"
    )
    picture.pts, picture.time_base = ticks, _TICK
    out.mux(stream.encode(picture))
    return stream
