"""Frames → the square pictures that CLIP's image tower takes.

CLIP's transform: shorter side to ``size`` (bicubic with antialiasing, as PIL does it), centre crop. Results stay uint8;
scaling to floats and normalisation by the tower's mean and deviation happen in the net.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


def resize_and_crop(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Bring RGB frames ``(F, H, W, 3)`` uint8 to ``(F, size, size, 3)`` uint8.

    The same numbers as ``torchvision.transforms``' ``Resize(size, BICUBIC)`` and ``CenterCrop(size)`` on PIL images:
    the longer side is truncated, the crop's corner rounded half to even.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (F, H, W, 3), RGB")
    if size < 1:
        raise ValueError(f"size is {size}; expected the image tower's input size in pixels, at least 1")
    squares = np.empty((len(frames), size, size, 3), np.uint8)
    for frame, square in zip(frames, squares, strict=True):
        square[:] = _resize_and_crop_one(frame, size)
    return squares


def _resize_and_crop_one(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    short, long = min(width, height), max(width, height)
    long = int(size * long / short)
    new_width, new_height = (size, long) if width <= height else (long, size)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    image = Image.fromarray(np.ascontiguousarray(frame))
    if (width, height) != (new_width, new_height):
        image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))
