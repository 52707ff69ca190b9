"""Words for scenes: varied captions that state everything that distinguishes a scene, and short ones like queries.

Everything random comes from the generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.demo.scene import Scene

_SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_SHAPE_WORDS = {
    "circle": ("circle", "disc", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart",),
}
_MOTION_WORDS = {
    "left": ("moves left", "slides to the left", "drifts left", "goes to the left"),
    "right": ("moves right", "slides to the right", "drifts right", "goes to the right"),
    "up": ("moves up", "rises", "floats up", "goes upwards"),
    "down": ("moves down", "falls", "sinks down", "goes downwards"),
    "still": ("stays still", "does not move", "rests"),
    "circles": ("moves in circles", "circles around", "runs in a circle"),
    "bounces": ("bounces", "bounces up and down", "jumps up and down"),
    "shakes": ("shakes", "trembles", "wobbles from side to side"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
}
_CORNER_WORDS = {
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
}
_BACKGROUND_WORDS = {
    "black": ("black",),
    "white": ("white",),
    "gray": ("gray", "grey"),
    "brown": ("brown",),
    "navy": ("navy", "dark blue"),
    "beige": ("beige", "sand"),
}
_PATTERN_WORDS = {
    "plain": ("plain {}", "solid {}"),
    "striped": ("striped {}", "{} striped"),
    "checked": ("checked {}", "{} checkerboard"),
    "dotted": ("dotted {}", "{} dotted"),
    "gradient": ("{} gradient", "shaded {}"),
}


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _object(scene: Scene, rng: np.random.Generator) -> str:
    size, shape = _pick(rng, _SIZE_WORDS[scene.size]), _pick(rng, _SHAPE_WORDS[scene.shape])
    return f"a {size} {scene.colour} {shape}"


def _story(scene: Scene, rng: np.random.Generator) -> str:
    motion = _pick(rng, _MOTION_WORDS[scene.motion])
    if scene.then_motion is not None:
        then = _pick(rng, _MOTION_WORDS[scene.then_motion])
        return _pick(rng, (f"first {motion}, then {then}", f"{motion} and then {then}", f"{motion} before it {then}"))
    if scene.then_colour is not None:
        colour = scene.then_colour
        return _pick(
            rng,
            (f"{motion} and turns {colour}", f"{motion}, then becomes {colour}", f"{motion} and changes to {colour}"),
        )
    if scene.visibility == "appears":
        return _pick(
            rng, (f"appears and {motion}", f"is first absent, then appears and {motion}", f"pops up and {motion}")
        )
    if scene.visibility == "disappears":
        return _pick(rng, (f"{motion} and disappears", f"{motion}, then vanishes", f"{motion} before it disappears"))
    return motion


def _background(scene: Scene, rng: np.random.Generator) -> str:
    tone = _pick(rng, _PATTERN_WORDS[scene.pattern]).format(_pick(rng, _BACKGROUND_WORDS[scene.background]))
    return f"{_pick(rng, ('on', 'over', 'against'))} a {tone} background"


def _second(scene: Scene, rng: np.random.Generator) -> str:
    assert scene.second is not None
    shape, corner = _pick(rng, _SHAPE_WORDS[scene.second.shape]), _pick(rng, _CORNER_WORDS[scene.second.corner])
    plain = _article(scene.second.colour)
    article = _pick(rng, (plain, "another")) if scene.second.shape == scene.shape else plain
    return f"{article} {scene.second.colour} {shape} {_pick(rng, ('in', 'at'))} the {corner}"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Return one full caption: every described attribute of ``scene``, in varied words and order."""
    main, background = f"{_object(scene, rng)} {_story(scene, rng)}", _background(scene, rng)
    if scene.second is None:
        return _pick(rng, (f"{main} {background}", f"{main} {background}", f"{background}, {main}"))
    second = _second(scene, rng)
    return _pick(
        rng,
        (
            f"{main} {background}, with {second}",
            f"{main}, with {second}, {background}",
            f"{background}, {main}; there is {second}",
            f"{second} and {main} {background}",
        ),
    )


def describe_object(scene: Scene, rng: np.random.Generator, *, sized: bool) -> str:
    """Return a caption that names the main object and nothing else, with or without its size."""
    shape = _pick(rng, _SHAPE_WORDS[scene.shape])
    if not sized:
        return _pick(rng, (f"{scene.colour} {shape}", f"{_article(scene.colour)} {scene.colour} {shape}"))
    return f"a {_pick(rng, _SIZE_WORDS[scene.size])} {scene.colour} {shape}"


def describe_briefly(scene: Scene, rng: np.random.Generator) -> str:
    """Return a short caption, true of ``scene`` but of others too: what people type into a search box."""
    shape = _pick(rng, _SHAPE_WORDS[scene.shape])
    main = _pick(
        rng,
        (
            f"{scene.colour} {shape}",
            f"{_article(scene.colour)} {scene.colour} {shape}",
            _object(scene, rng),
            f"a {shape}",
        ),
    )
    parts = [main]
    if rng.random() < 0.5:
        parts.append(_story(scene, rng))
    if rng.random() < 0.4:
        tone = _pick(rng, _BACKGROUND_WORDS[scene.background])
        parts.append(_pick(rng, (_background(scene, rng), f"on a {tone} background", f"on {tone}")))
    if scene.second is not None and rng.random() < 0.4:
        parts.append(f"with {_second(scene, rng)}")
    return " ".join(parts)


def captions_of(scene: Scene, seed: int, index: int) -> list[str]:
    """Return the two full captions of clip ``index`` that the corpus on disk holds, which always differ."""
    rng = np.random.default_rng([seed, index, scene.look.noise])
    first = describe(scene, rng)
    while True:
        second = describe(scene, rng)
        if second != first:
            return [first, second]
