"""Augmentation of training clips: RandAugment as the reference has it (``rand-m7-n4-mstd0.5-inc1``, reference §3.2).

In: the decoded frames of a clip, before they are resized, and a generator. Out: changed frames of the same shape. All
frames of a clip are changed alike. The operations are PIL's, as in the reference. What is drawn depends on the given
generator alone: the reference draws from numpy's global state inside its workers, so that no run can be repeated
(reference §8, 27). torchvision's RandAugment would not do instead: it has no solarize_add, no probability of an
operation and no deviation of its magnitude, draws from PyTorch's global generator, and shifts by pixels, not by shares.

Some operations change colours and sides (Invert, Solarize, Rotate), so captions that name them turn false. That is why
nothing is augmented unless a configuration asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from pydantic import BeforeValidator, Field

from model.config import Config

MAX_MAGNITUDE = 10.0
_FILL = (128, 128, 128)  # of what is moved into the picture
_BICUBIC = Image.Resampling.BICUBIC
_SOLARIZE_ADD_BELOW = 128


class NoAugmentation(Config):
    """Frames as they were decoded."""

    kind: Literal["none"] = "none"


class RandAugmentConfig(Config):
    """RandAugment. The defaults are the reference's.

    ``operations`` are drawn for each clip, with replacement; each is then done with ``probability``, at a strength that
    is drawn from a normal distribution around ``magnitude``, clipped to 0..10. ``translate`` is the largest shift, in
    widths or heights of the picture.
    """

    kind: Literal["randaugment"] = "randaugment"
    operations: int = Field(4, ge=1)
    probability: float = Field(0.5, gt=0, le=1)
    magnitude: float = Field(7.0, ge=0, le=MAX_MAGNITUDE)
    magnitude_deviation: float = Field(0.5, ge=0)
    translate: float = Field(0.45, ge=0, le=1)


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


# In a configuration also by name alone: ``augmentation: randaugment``.
Augmentation: TypeAlias = Annotated[
    Annotated[NoAugmentation | RandAugmentConfig, Field(discriminator="kind")], BeforeValidator(_named)
]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation with its argument, whose unit depends on ``name`` (degrees, factor, pixel value, …)."""

    name: str
    argument: float = 0.0


def augment(frames: NDArray[np.uint8], config: RandAugmentConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change the frames of a clip, (F, H, W, 3) uint8, all alike; returns new frames of the same shape."""
    return apply_operations(frames, draw_operations(config, rng))


def draw_operations(config: RandAugmentConfig, rng: np.random.Generator) -> list[Operation]:
    """Draw what is done to one clip, in order; often fewer than ``config.operations``, sometimes nothing."""
    names = list(_ARGUMENTS)
    drawn = []
    for number in rng.integers(len(names), size=config.operations):
        # Everything is drawn, used or not, so that one operation's luck does not shift the others' draws.
        is_done, is_negative = rng.random(2) < (config.probability, 0.5)
        magnitude = np.clip(rng.normal(config.magnitude, config.magnitude_deviation), 0, MAX_MAGNITUDE)
        if is_done:
            strength, sign = float(magnitude) / MAX_MAGNITUDE, -1.0 if is_negative else 1.0
            name = names[number]
            drawn.append(Operation(name=name, argument=_ARGUMENTS[name](strength, sign, config.translate)))
    return drawn


def apply_operations(frames: NDArray[np.uint8], operations: list[Operation]) -> NDArray[np.uint8]:
    """Apply operations to every frame, (F, H, W, 3) uint8, one after the other."""
    changed = np.empty_like(frames)
    for frame, target in zip(frames, changed, strict=True):
        image = Image.fromarray(frame)
        for operation in operations:
            image = _FUNCTIONS[operation.name](image, operation.argument)
        target[:] = np.asarray(image)
    return changed


# Strength (0..1), sign (-1, 1) and largest shift → argument. "Increasing": 0 always leaves the picture alone.
_ARGUMENTS: dict[str, Callable[[float, float, float], float]] = {
    "autocontrast": lambda strength, sign, shift: 0.0,
    "equalize": lambda strength, sign, shift: 0.0,
    "invert": lambda strength, sign, shift: 0.0,
    "rotate": lambda strength, sign, shift: sign * 30 * strength,  # degrees
    # Bits that are kept. The reference keeps none at strength 1, which is a black picture.
    "posterize": lambda strength, sign, shift: max(1, 4 - int(4 * strength)),
    "solarize": lambda strength, sign, shift: 256 - int(256 * strength),  # the value from which on pixels are inverted
    "solarize_add": lambda strength, sign, shift: int(110 * strength),  # what dark pixels gain
    "colour": lambda strength, sign, shift: 1 + sign * 0.9 * strength,  # factors of ImageEnhance
    "contrast": lambda strength, sign, shift: 1 + sign * 0.9 * strength,
    "brightness": lambda strength, sign, shift: 1 + sign * 0.9 * strength,
    "sharpness": lambda strength, sign, shift: 1 + sign * 0.9 * strength,
    "shear_x": lambda strength, sign, shift: sign * 0.3 * strength,
    "shear_y": lambda strength, sign, shift: sign * 0.3 * strength,
    "translate_x": lambda strength, sign, shift: sign * shift * strength,  # in widths
    "translate_y": lambda strength, sign, shift: sign * shift * strength,  # in heights
}


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=_BICUBIC, fillcolor=_FILL)


def _solarize_add(image: Image.Image, gain: float) -> Image.Image:
    values = np.arange(256)
    values = np.where(values < _SOLARIZE_ADD_BELOW, np.minimum(values + int(gain), 255), values)
    return image.point(values.tolist() * 3)


_FUNCTIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": lambda image, degrees: image.rotate(degrees, resample=_BICUBIC, fillcolor=_FILL),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "solarize_add": _solarize_add,
    "colour": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "shear_x": lambda image, share: _affine(image, (1, share, 0, 0, 1, 0)),
    "shear_y": lambda image, share: _affine(image, (1, 0, 0, share, 1, 0)),
    "translate_x": lambda image, share: _affine(image, (1, 0, share * image.width, 0, 1, 0)),
    "translate_y": lambda image, share: _affine(image, (1, 0, 0, 0, 1, share * image.height)),
}
