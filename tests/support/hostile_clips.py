"""Whole, small clips in every container that is read here: what the hostile files are made of."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from functools import cache

import numpy as np


def clip(
    container: str,
    codec: str,
    *,
    size: tuple[int, int] = (64, 48),
    frames: int = 8,
    rate: int = 5,
    start: int = 0,
    muxer: Mapping[str, str] | None = None,
) -> bytes:
    """A second or two of a gradient that moves."""
    import av

    file = io.BytesIO()
    options = {"fflags": "bitexact", **(muxer or {})}
    with av.open(file, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, options={"g": "4", "threads": "1"})
        stream.width, stream.height = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
        stream.codec_context.flags |= 1 << 23  # bit exact
        slope = np.add.outer(np.arange(size[1]) * 2, np.arange(size[0]) * 3)
        for number_ in range(frames):
            picture = np.stack([slope + 20 * number_, slope * 2, slope + 90], axis=-1).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = start + number_, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@cache
def bases() -> Mapping[str, bytes]:
    """A whole clip in each container."""
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    return {
        "mp4": clip("mp4", "libx264"),
        "faststart": clip("mp4", "mpeg4", muxer={"moov_size": "3000"}),
        "fragments": clip("mp4", "libx264", muxer=fragments),
        "mov": clip("mov", "mjpeg"),
        "mkv": clip("matroska", "libx264"),
        "webm": clip("webm", "libvpx"),
        "avi": clip("avi", "mpeg4"),
        "ts": clip("mpegts", "mpeg2video", rate=25),
        "mpeg": clip("mpeg", "mpeg1video", rate=25),
        "flv": clip("flv", "flv"),
        "asf": clip("asf", "wmv2"),
        "gif": clip("gif", "gif"),
    }


@cache
def jpeg(width: int = 64, height: int = 48) -> bytes:
    """A picture, as a sample of the files that are written by hand."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "JPEG")
    return file.getvalue()
