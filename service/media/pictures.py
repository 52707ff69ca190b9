"""A moment of a video as a JPEG, and many as one: a sprite.

Without PyTorch, so that the sandboxed process can make them too.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from model.video.sampling import NO_LIMITS, decode_frame, decode_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model.video.sampling import DecodeLimits, Source

JPEG_QUALITY = 80
SPRITE_COLUMNS = 6


def picture_of(source: Source, at_seconds: float, width: int, limits: DecodeLimits = NO_LIMITS) -> bytes:
    """The frame on screen at a time, at most ``width`` pixels wide and four times as high. Raises ``VideoError``."""
    from PIL import Image

    picture = Image.fromarray(decode_frame(source, at_seconds, limits=limits))
    picture.thumbnail((width, 4 * width))  # keeps the shape; portrait videos may be taller than wide
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def sprite_of(source: Source, at_seconds: Sequence[float], side: int, limits: DecodeLimits = NO_LIMITS) -> bytes:
    """The frames on screen at several times as tiles of one JPEG, in rows of ``SPRITE_COLUMNS``, the last filled up.

    Tiles have one size, that of the first frame scaled down to at most ``side`` pixels either way. Raises
    ``VideoError``.
    """
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in decode_frames(source, at_seconds, side=side, limits=limits)]
    width, height = frames[0].size
    rows = -(-len(frames) // SPRITE_COLUMNS)
    sprite = Image.new("RGB", (SPRITE_COLUMNS * width, rows * height))
    for number, frame in enumerate(frames):
        row, column = divmod(number, SPRITE_COLUMNS)
        sprite.paste(frame.resize((width, height)), (column * width, row * height))
    out = io.BytesIO()
    sprite.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
