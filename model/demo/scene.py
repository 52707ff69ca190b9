"""Scenes of the demo corpus: moving shapes, deterministic by ``(seed, split, index)``.

In: a seed, a split and an index. Out: a ``Scene``, which ``model.demo.render`` draws and
``model.demo.captions`` describes; ``model.demo.corpus`` writes clips of it.

Splits never share a combination of the main object's colour, shape and story: the hash of that combination decides
the split, so every test clip shows something that no training clip showed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Split = Literal["train", "val", "test"]
Visibility = Literal["always", "appears", "disappears"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
SIZES = ("small", "large")
DIRECTIONS = ("left", "right", "up", "down")
MOTIONS = (*DIRECTIONS, "still", "circles", "bounces", "shakes", "grows", "shrinks")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS = ("black", "white", "gray", "brown", "navy", "beige")
PATTERNS = ("plain", "striped", "checked", "dotted", "gradient")
DURATIONS_SECONDS = (3.0, 4.0)

_BUCKETS = 20  # of the combination hash: one is the validation split, two are the test split
_EVENTS = ("none", "turn", "recolour", "appears", "disappears")
_EVENT_SHARES = (0.44, 0.2, 0.16, 0.1, 0.1)
_SECOND_OBJECT_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class SecondObject:
    """A small object that rests in a corner for the whole clip."""

    colour: str
    shape: str
    corner: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """What differs between clips of the same description and is never described: all fields are in [0, 1)."""

    centre_x: float
    centre_y: float
    reach: float
    phase: float
    moment: float
    tilt: float
    scale: float
    tint: tuple[float, ...]
    noise: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip. Every field but ``look`` and ``duration_seconds`` is stated by a full caption.

    ``then_motion`` or ``then_colour`` is what the main object does or becomes after about half the time.
    """

    colour: str
    shape: str
    size: str
    motion: str
    then_motion: str | None
    then_colour: str | None
    visibility: Visibility
    background: str
    pattern: str
    second: SecondObject | None
    duration_seconds: float
    look: Look

    @property
    def combination(self) -> str:
        """What decides the split: the main object's colour, shape and story."""
        story = (self.motion, self.then_motion, self.then_colour, self.visibility)
        return "|".join(str(part) for part in (self.colour, self.shape, *story))

    @property
    def split(self) -> Split:
        """The only split in which this combination occurs."""
        bucket = zlib.crc32(self.combination.encode()) % _BUCKETS
        return "val" if bucket == 0 else "test" if bucket <= 2 else "train"

    @property
    def tags(self) -> list[str]:
        """Facts for filters: colour, shape and background, such as ``beige background``."""
        return [self.colour, self.shape, f"{self.background} background"]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _other(rng: np.random.Generator, options: Sequence[str], taken: str) -> str:
    return _pick(rng, [option for option in options if option != taken])


def _draw_look(rng: np.random.Generator) -> Look:
    values = [float(value) for value in rng.random(19)]
    return Look(
        centre_x=values[0],
        centre_y=values[1],
        reach=values[2],
        phase=values[3],
        moment=values[4],
        tilt=values[5],
        scale=values[6],
        tint=tuple(values[7:]),
        noise=int(rng.integers(2**31)),
    )


def _draw_second(rng: np.random.Generator) -> SecondObject:
    return SecondObject(colour=_pick(rng, COLOURS), shape=_pick(rng, SHAPES), corner=_pick(rng, CORNERS))


def _draw_scene(rng: np.random.Generator) -> Scene:
    event = str(rng.choice(_EVENTS, p=_EVENT_SHARES))
    motion = _pick(rng, MOTIONS if event in ("none", "recolour") else DIRECTIONS)
    colour = _pick(rng, COLOURS)
    return Scene(
        colour=colour,
        shape=_pick(rng, SHAPES),
        size=_pick(rng, SIZES),
        motion=motion,
        then_motion=_other(rng, DIRECTIONS, motion) if event == "turn" else None,
        then_colour=_other(rng, COLOURS, colour) if event == "recolour" else None,
        visibility="appears" if event == "appears" else "disappears" if event == "disappears" else "always",
        background=_pick(rng, BACKGROUNDS),
        pattern=_pick(rng, PATTERNS),
        second=_draw_second(rng) if rng.random() < _SECOND_OBJECT_SHARE else None,
        duration_seconds=float(rng.choice(DURATIONS_SECONDS)),
        look=_draw_look(rng),
    )


def scene_generator(seed: int, split: Split, index: int) -> np.random.Generator:
    """Return the random generator that all choices about clip ``index`` come from."""
    return np.random.default_rng([seed, SPLITS.index(split), index])


def make_scene(seed: int, split: Split, index: int) -> Scene:
    """Return clip ``index`` of a split; the same arguments always give the same scene."""
    rng = scene_generator(seed, split, index)
    while True:
        scene = _draw_scene(rng)
        if scene.split == split:
            return scene


def lone_object(rng: np.random.Generator, *, size: str, colour: str, shape: str) -> Scene:
    """Return a scene of the training split with one given object, always there, of one colour."""
    while True:
        scene = replace(
            _draw_scene(rng), size=size, colour=colour, shape=shape, then_colour=None, visibility="always", second=None
        )
        if scene.split == "train":
            return scene


def vary(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return a scene of the same split that differs in one described attribute: a hard negative of ``scene``.

    The look, which captions never describe, is drawn again, so that the two cannot be matched by it.
    """
    while True:
        varied = replace(_change_one(scene, rng), look=_draw_look(rng))
        if varied.split == scene.split:
            return varied


def _change_one(scene: Scene, rng: np.random.Generator) -> Scene:
    # Shape is the hardest to see and the least needed to distinguish random scenes, so it is changed most often.
    options = ("colour", *["shape"] * 3, "size", "motion", "background", "pattern", "second")
    match _pick(rng, options):
        case "colour" if scene.then_colour is None:
            return replace(scene, colour=_other(rng, COLOURS, scene.colour))
        case "colour":
            return replace(scene, colour=scene.then_colour or scene.colour, then_colour=scene.colour)
        case "shape":
            return replace(scene, shape=_other(rng, SHAPES, scene.shape))
        case "size":
            return replace(scene, size=_other(rng, SIZES, scene.size))
        case "motion" if scene.then_motion is not None:
            return replace(scene, motion=scene.then_motion, then_motion=scene.motion)
        case "motion" if scene.visibility == "always":
            return replace(scene, motion=_other(rng, MOTIONS, scene.motion))
        case "motion":
            return replace(scene, visibility="appears" if scene.visibility == "disappears" else "disappears")
        case "background":
            return replace(scene, background=_other(rng, BACKGROUNDS, scene.background))
        case "pattern":
            return replace(scene, pattern=_other(rng, PATTERNS, scene.pattern))
        case _ if scene.second is None:
            return replace(scene, second=_draw_second(rng))
        case _:
            return replace(scene, second=replace(scene.second, corner=_other(rng, CORNERS, scene.second.corner)))


def describes(captioned: Scene, shown: Scene) -> bool:
    """Whether everything that a full caption of ``captioned`` says is true of ``shown``.

    A caption does not mention absent objects or events, so it is also true of a clip that has one more.
    """
    same = all(
        getattr(captioned, name) == getattr(shown, name)
        for name in ("colour", "shape", "size", "motion", "then_motion", "background", "pattern")
    )
    return (
        same
        and captioned.then_colour in (None, shown.then_colour)
        and captioned.visibility in ("always", shown.visibility)
        and captioned.second in (None, shown.second)
    )


def recall_ceiling(scenes: Sequence[Scene]) -> tuple[float, float]:
    """Return the best expected R@1 (percent) of text → video and of video → text on ``scenes``.

    Even a perfect model must guess among the k clips of which a caption is true, and among the k captions that are
    true of a clip.
    """
    truth_TV = np.array([[describes(captioned, shown) for shown in scenes] for captioned in scenes])
    return 100 * float(np.mean(1 / truth_TV.sum(axis=1))), 100 * float(np.mean(1 / truth_TV.sum(axis=0)))
