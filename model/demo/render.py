"""Draws scenes: signed distance functions, anti-aliased, vectorised over frames and pixels.

``render(scene, times_seconds, size)`` gives frames at any size, so that training draws at the model's input size and
the corpus on disk at 160 x 160 from the same description. Distances: https://iquilezles.org/articles/distfunctions2d.
Coordinates are in frame widths, x to the right and y downwards, (0.5, 0.5) in the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.demo.scene import Look, Scene

Array = NDArray[np.floating[Any]]

_RGB = {
    "red": (218, 38, 36),
    "orange": (247, 134, 22),
    "yellow": (248, 222, 44),
    "green": (44, 168, 60),
    "cyan": (58, 214, 222),
    "blue": (40, 84, 228),
    "purple": (130, 42, 170),
    "pink": (250, 130, 182),
}
# Each background is a pair of tones: patterns alternate between them, a plain one uses the first.
_BACKGROUND_RGB = {
    "black": ((14, 14, 16), (58, 58, 62)),
    "white": ((244, 244, 242), (206, 206, 208)),
    "gray": ((126, 128, 130), (92, 94, 98)),
    "brown": ((104, 66, 38), (74, 44, 22)),
    "navy": ((22, 30, 84), (44, 58, 126)),
    "beige": ((224, 204, 164), (196, 172, 128)),
}
_RADIUS = {"small": 0.095, "large": 0.19}
_SECOND_RADIUS = 0.1
_TINT = 14.0  # half width of the random change of every colour channel, of 255


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.92


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.82


def _triangle(x: Array, y: Array) -> Array:
    slope = 0.8660254 * np.abs(x) - 0.5 * y
    drawn: Array = np.maximum(slope - 0.52, y - 0.62)
    return drawn


def _star(x: Array, y: Array) -> Array:
    # Fold the plane into one of ten half sectors, where a star is a single edge.
    angle = np.arctan2(x, -y)
    sector = 2 * np.pi / 5
    folded = np.abs((angle + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(folded), radius * np.sin(folded)
    # The edge from the tip (1.08, 0) to the notch at 36 degrees and radius 0.45.
    tip, notch_along, notch_across = 1.08, 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    edge_along, edge_across = notch_along - tip, notch_across
    length = float(np.hypot(edge_along, edge_across))
    drawn: Array = ((along - tip) * edge_across - across * edge_along) / length
    return drawn


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.7) - 0.23


def _cross(x: Array, y: Array) -> Array:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 0.98, short - 0.31)


def _heart(x: Array, y: Array) -> Array:
    # Two discs over a square on its corner.
    side = np.abs(x)
    discs = np.hypot(side - 0.46, y + 0.34) - 0.5
    body = np.maximum((side + y) * 0.70710678 - 0.58, -0.2 - y)
    drawn: Array = np.minimum(discs, np.maximum(body, side - 0.96))
    return drawn


_DISTANCE: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
}


def _colour(rgb: tuple[int, int, int], tint: tuple[float, ...]) -> Array:
    return np.clip(np.asarray(rgb, np.float32) + (np.asarray(tint, np.float32) - 0.5) * 2 * _TINT, 0, 255)


def _coverage(shape: str, x: Array, y: Array, radius: Array | float, tilt: float, size: int) -> Array:
    """Return the share of each pixel that the shape covers; ``x`` and ``y`` are relative to its centre."""
    cosine, sine = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    distance = _DISTANCE[shape]((x * cosine + y * sine) / radius, (y * cosine - x * sine) / radius)
    drawn: Array = np.clip(0.5 - distance * radius * size, 0, 1)
    return drawn


def _pattern(scene: Scene, x: Array, y: Array, size: int) -> Array:
    """Return the weight of the background's second tone, in [0, 1]."""
    look = scene.look
    period = np.float32(0.16 + 0.06 * look.scale)
    softness = np.float32(size * period / 2)

    def wave(values: Array) -> Array:
        # A triangle wave in [-1, 1] per period, whose zero crossings are the anti-aliased edges.
        drawn: Array = np.abs(((values / period + look.phase) % 1) * 4 - 2) - 1
        return drawn

    match scene.pattern:
        case "striped":
            along = y if look.tilt < 0.5 else x
            return np.clip(wave(along) * softness / 2 + 0.5, 0, 1)
        case "checked":
            return np.clip(wave(x) * wave(y) * softness / 2 + 0.5, 0, 1)
        case "dotted":
            return np.clip((0.55 - np.hypot(wave(x) + 1, wave(y) + 1) / 1.4) * softness + 0.5, 0, 1)
        case "gradient":
            along = y if look.phase < 0.5 else 1 - y
            drawn: Array = np.clip(along * 2.2 - 0.6, -0.6, 1.6)
            return drawn
        case _:
            return np.zeros_like(x)


def _background(scene: Scene, x: Array, y: Array, size: int) -> Array:
    """Return the part of the frame that does not move, ``(size, size, 3)``."""
    tint = scene.look.tint
    first, second = (_colour(rgb, tint[:3]) for rgb in _BACKGROUND_RGB[scene.background])
    image = first + _pattern(scene, x, y, size)[..., None] * (second - first)
    if scene.second is not None:
        vertical, horizontal = scene.second.corner.split()
        centre_x = np.float32(0.16 if horizontal == "left" else 0.84)
        centre_y = np.float32(0.16 if vertical == "top" else 0.84)
        cover = _coverage(scene.second.shape, x - centre_x, y - centre_y, _SECOND_RADIUS, 0.0, size)[..., None]
        image += cover * (_colour(_RGB[scene.second.colour], tint[3:6]) - image)
    return image


_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def _path(scene: Scene, progress_F: Array, half: float) -> tuple[Array, Array]:
    """Return the way from the middle of the main object's place at each time; ``progress`` runs from 0 to 1."""
    look, still = scene.look, np.zeros_like(progress_F)
    reach = 0.22 + 0.08 * look.reach
    turn = 2 * np.pi * (progress_F * (1.5 + 0.5 * look.scale) + look.phase)
    if scene.then_motion is not None:
        first, then = np.array(_STEP[scene.motion]), np.array(_STEP[scene.then_motion])
        # Both legs together are centred, so that the object stays in view; there and back needs no such care.
        before = np.clip(progress_F / half, 0, 1)
        after = np.clip((progress_F - half) / (1 - half), 0, 1)
        legs_F2 = 1.5 * reach * (np.outer(before - 0.5, first) + np.outer(after - 0.5, then))
        return legs_F2[:, 0].astype(np.float32), legs_F2[:, 1].astype(np.float32)
    match scene.motion:
        case "left" | "right" | "up" | "down":
            step_x, step_y = _STEP[scene.motion]
            along = (progress_F - 0.5) * 2 * reach
            return along * step_x, along * step_y
        case "circles":
            return 0.75 * reach * np.cos(turn), 0.75 * reach * np.sin(turn)
        case "bounces":
            return still, reach * (0.8 - 1.6 * np.abs(np.sin(turn)))
        case "shakes":
            return 0.07 * np.sin(5.3 * turn), still
        case _:
            return still, still


def _radius(scene: Scene, progress_F: Array) -> Array:
    radius = _RADIUS[scene.size] * (0.92 + 0.16 * scene.look.scale)
    match scene.motion:
        case "grows":
            return radius * (0.35 + 1.05 * progress_F)
        case "shrinks":
            return radius * (1.4 - 1.05 * progress_F)
        case _:
            return np.full_like(progress_F, radius)


def _place(look: Look) -> tuple[float, float]:
    return 0.5 + 0.16 * (look.centre_x - 0.5), 0.5 + 0.16 * (look.centre_y - 0.5)


def _object_cover(scene: Scene, progress_F: Array, half: float, axis_S: Array) -> Array:
    """Return the share (F, S, S) of each pixel that the main object covers."""
    way_x, way_y = _path(scene, progress_F, half)
    place_x, place_y = _place(scene.look)
    x_F1S = axis_S[None, None, :] - (place_x + way_x)[:, None, None].astype(np.float32)
    y_FS1 = axis_S[None, :, None] - (place_y + way_y)[:, None, None].astype(np.float32)
    radius_F11 = _radius(scene, progress_F)[:, None, None]
    cover_FSS = _coverage(scene.shape, x_F1S, y_FS1, radius_F11, 0.3 * (scene.look.tilt - 0.5), len(axis_S))
    if scene.visibility != "always":
        shown_F = progress_F >= half if scene.visibility == "appears" else progress_F < half
        cover_FSS = cover_FSS * shown_F[:, None, None]
    return cover_FSS


def render(scene: Scene, times_seconds: NDArray[np.floating[Any]], size: int) -> NDArray[np.uint8]:
    """Draw ``scene`` at the given times.

    Returns ``(F, size, size, 3)`` uint8 RGB. Times beyond the clip's duration show its last moment.
    """
    axis_S = (np.arange(size, dtype=np.float32) + 0.5) / size
    y_SS, x_SS = np.meshgrid(axis_S, axis_S, indexing="ij")
    progress_F = np.clip(np.asarray(times_seconds, np.float32) / scene.duration_seconds, 0, 1)
    half = 0.44 + 0.12 * scene.look.moment  # when "then" begins
    cover_FSS = _object_cover(scene, progress_F, half, axis_S)
    tint = scene.look.tint
    colour_F3 = np.repeat(_colour(_RGB[scene.colour], tint[6:9])[None], len(progress_F), axis=0)
    if scene.then_colour is not None:
        colour_F3[progress_F >= half] = _colour(_RGB[scene.then_colour], tint[9:12])
    still_1SSC = _background(scene, x_SS, y_SS, size)[None]
    frames_FHWC = still_1SSC + cover_FSS[..., None] * (colour_F3[:, None, None, :] - still_1SSC)
    return (frames_FHWC + 0.5).clip(0, 255).astype(np.uint8)
