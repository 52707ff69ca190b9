"""A moment of a video as a JPEG. Torch-free, so that the sandboxed process of strangers' videos can make one too."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from model.video.sampling import NO_LIMITS, decode_frame

if TYPE_CHECKING:
    from model.video.sampling import DecodeLimits, Source

JPEG_QUALITY = 80


def picture_of(source: Source, at_seconds: float, width: int, limits: DecodeLimits = NO_LIMITS) -> bytes:
    """The frame on screen at a time, at most ``width`` pixels wide and four times as high. Raises ``VideoError``."""
    from PIL import Image

    picture = Image.fromarray(decode_frame(source, at_seconds, limits=limits))
    picture.thumbnail((width, 4 * width))  # keeps the shape; portrait videos may be taller than wide
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
