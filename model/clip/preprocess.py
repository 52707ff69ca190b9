"""Frames → the pictures that a CLIP image tower was trained on.

Every pretrained tag has its own way: which size (height and width), which part of the frame, which interpolation.
``Preprocess`` is that way, with the pixels that open_clip's own validation transform gives, to the bit. Results stay
uint8; scaling to floats and normalisation by the tower's mean and deviation happen in the net. Torch-free, because
decode workers use it.

    shortest   the shorter side is resized to fit, then the centre is cropped (OpenAI's CLIP, most of LAION's)
    squash     the whole frame, whatever its shape, is resized to the size (SigLIP, PE-Core, CLIPA)
    longest    the longer side is resized to fit, and the rest is filled with ``fill`` (by a model's own dictionary)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from numpy.typing import NDArray

ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # of Pillow's kernels, in pixels of the smaller picture
_PRECISION_BITS = 22  # of Pillow's weights for 8-bit pixels: 32 - 8 - 2
LONG = 4  # a resized frame that is this many times as long as its crop is resized only where it is kept


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How frames of any shape become ``height`` × ``width`` pixels. Raises ``ValueError`` for what cannot be."""

    height: int
    width: int
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"size is {self.height} x {self.width}; expected the image tower's input size in pixels")
        if self.resize_mode not in ("shortest", "squash", "longest"):
            raise ValueError(f"resize_mode is {self.resize_mode!r}; expected shortest, squash or longest")
        if self.interpolation not in _FILTERS:
            raise ValueError(f"interpolation is {self.interpolation!r}; expected bicubic or bilinear")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill is {self.fill}; expected a grey value from 0 to 255")

    @classmethod
    def square(cls, size: int, **changes: Any) -> Preprocess:
        """``size`` × ``size`` pixels, as for OpenAI's CLIP, except for ``changes``."""
        return cls(height=size, width=size, **changes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one picture: (height, width, 3)."""
        return (self.height, self.width, 3)

    def __str__(self) -> str:
        return f"{self.height} x {self.width}, {self.resize_mode}, {self.interpolation}"

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Bring RGB frames ``(F, H, W, 3)`` uint8 to ``(F, height, width, 3)`` uint8."""
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:]:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (F, H, W, 3), RGB")
        pictures = np.empty((len(frames), *self.shape), np.uint8)
        for frame, picture in zip(frames, pictures, strict=True):
            picture[:] = self._one(np.ascontiguousarray(frame))
        return pictures

    def _one(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        size = self._resized(*frame.shape[:2])
        height, width = size
        if self.resize_mode == "squash":
            return np.asarray(self._resize(Image.fromarray(frame), size))
        if self.resize_mode == "longest":
            return np.asarray(self._padded(self._resize(Image.fromarray(frame), size)))
        top, left = round((height - self.height) / 2), round((width - self.width) / 2)
        if height > LONG * self.height or width > LONG * self.width:
            rows, columns = range(top, top + self.height), range(left, left + self.width)
            return _resize_part(frame, size, rows, columns, self._filter)
        image = self._resize(Image.fromarray(frame), size)
        return np.asarray(image.crop((left, top, left + self.width, top + self.height)))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the whole frame after resizing, rounded as open_clip and torchvision round."""
        if self.resize_mode == "squash":
            return self.height, self.width
        if self.resize_mode == "shortest" and self.height == self.width:  # torchvision: the longer side is truncated
            short, long = min(height, width), max(height, width)
            long = int(self.height * long / short)
            return (long, self.height) if width <= height else (self.height, long)
        ratios = (height / self.height, width / self.width)
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    @property
    def _filter(self) -> Interpolation:
        # open_clip's transform for towers that are not square passes no interpolation on: always bicubic.
        return "bicubic" if self.resize_mode == "shortest" and self.height != self.width else self.interpolation

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        height, width = size
        return image if image.size == (width, height) else image.resize((width, height), _FILTERS[self._filter])

    def _padded(self, image: Image.Image) -> Image.Image:
        across, down = self.width - image.width, self.height - image.height
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        return ImageOps.expand(image, border, fill=(self.fill,) * 3)


def _resize_part(
    frame: NDArray[np.uint8], size: tuple[int, int], rows: range, columns: range, kind: Interpolation
) -> NDArray[np.uint8]:
    """``rows`` and ``columns`` of ``frame`` resized to ``size``, computed alone: Pillow's arithmetic, to the bit.

    Pillow resizes along one axis, rounds to bytes, then along the other, with weights of 22 bits after the point. It
    has no way to ask for a part of the result that gives the same bits (its ``box`` is of single precision). A frame of
    1 x 16,384 at 224 pixels would be resized to 224 x 3,670,016 to keep 224 x 224 of them.
    """
    height, width = frame.shape[:2]
    first_row, down = _weights(height, size[0], rows, kind)
    first_column, across = _weights(width, size[1], columns, kind)
    kept_rows = slice(int(first_row.min()), int(first_row.max()) + down.shape[1])
    kept_columns = slice(int(first_column.min()), int(first_column.max()) + across.shape[1])
    part = frame[kept_rows, kept_columns]
    first_row, first_column = first_row - kept_rows.start, first_column - kept_columns.start
    if height - size[0] > max(0, 2 * (width - size[1])) and _pillow_may_start_down():
        narrow = _convolved(part, first_row, down)
        return _convolved(narrow.transpose(1, 0, 2), first_column, across).transpose(1, 0, 2)
    narrow = _convolved(part.transpose(1, 0, 2), first_column, across)
    return _convolved(narrow.transpose(1, 0, 2), first_row, down)


@cache
def _pillow_may_start_down() -> bool:
    """Whether this Pillow resizes down first where the height shrinks more than twice as much as the width."""
    pixels = (np.arange(64 * 8) * 37 % 256).astype(np.uint8).reshape(64, 8)
    image, kind = Image.fromarray(pixels), _FILTERS["bicubic"]
    across_first = image.resize((6, 64), kind).resize((6, 16), kind)
    return image.resize((6, 16), kind).tobytes() != across_first.tobytes()


def _convolved(pixels: NDArray[np.uint8], first: NDArray[np.int64], weights: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Weighted sums along the first axis: output ``i`` of ``pixels[first[i] + j] * weights[i, j]``, as bytes."""
    total = np.full((len(first), *pixels.shape[1:]), 1 << (_PRECISION_BITS - 1), np.int64)
    for j in range(weights.shape[1]):
        places = np.minimum(first + j, len(pixels) - 1)  # beyond the edge the weight is 0
        total += pixels[places] * weights[:, j, None, None]
    rounded: NDArray[np.uint8] = np.clip(total >> _PRECISION_BITS, 0, 255).astype(np.uint8)
    return rounded


def _weights(before: int, after: int, kept: range, kind: Interpolation) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pillow's ``precompute_coeffs`` for the kept outputs: first input of each, and weights ``(outputs, inputs)``."""
    scale = before / after
    stretch = max(scale, 1.0)
    support = _SUPPORT[kind] * stretch
    centres = (np.arange(kept.start, kept.stop) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), before)
    inputs = np.arange(int((last - first).max()))
    distances = np.abs((inputs + first[:, None] - centres[:, None] + 0.5) * (1.0 / stretch))
    raw = np.where(inputs < (last - first)[:, None], _kernel(distances, kind), 0.0)
    total = np.zeros(len(raw))
    for column in raw.T:  # added in order, as Pillow does: another order rounds otherwise
        total += column
    weights = raw / total[:, None]
    rounded = np.trunc(weights * (1 << _PRECISION_BITS) + np.where(weights < 0, -0.5, 0.5))
    return first, rounded.astype(np.int64)


def _kernel(x: NDArray[np.float64], kind: Interpolation) -> NDArray[np.float64]:
    if kind == "bilinear":
        return np.where(x < 1.0, 1.0 - x, 0.0)
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
