"""A moment of a video as a JPEG, and many as one: a sprite.

Without PyTorch, so that the sandboxed process can make them too.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from model.video.sampling import NO_LIMITS, VideoError, decode_frame, decode_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from model.video.sampling import DecodeLimits, Source

JPEG_QUALITY = 80
STILL_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Pictures that can be searched with, by Pillow's names."""


class NotAPicture(ValueError):  # noqa: N818 - says what the input is, as the errors of videos do
    """The input is not a picture that is read here."""


SPRITE_COLUMNS = 6


def picture_of(source: Source, at_seconds: float, width: int, limits: DecodeLimits = NO_LIMITS) -> bytes:
    """The frame on screen at a time, at most ``width`` pixels wide and four times as high. Raises ``VideoError``."""
    from PIL import Image

    picture = Image.fromarray(decode_frame(source, at_seconds, limits=limits))
    picture.thumbnail((width, 4 * width))  # keeps the shape; portrait videos may be taller than wide
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def still_of(content: bytes, limits: DecodeLimits = NO_LIMITS) -> NDArray[np.uint8]:
    """A picture as one frame ``(1, H, W, 3)`` uint8 RGB, turned as its camera says, without its alpha channel.

    Of several pictures in a file it is the first. Raises ``NotAPicture``, or ``OverLimit`` before any pixel is decoded.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    limits.check_bytes(len(content))
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and checked before a pixel is decoded
    try:
        with Image.open(io.BytesIO(content), formats=STILL_FORMATS) as picture:
            limits.check_pixels(picture.width, picture.height)
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.asarray(upright, np.uint8)[None]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        raise NotAPicture(f"it cannot be read as a picture ({error})") from error


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
