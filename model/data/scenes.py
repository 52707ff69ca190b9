"""The demo corpus as training data: scenes rendered at the model's own size, endlessly, on the fly.

What is drawn here never went through a codec. A little noise and a change of brightness and contrast stand in for
that; the scores of a trained model are measured on decoded H.264 files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.clip.preprocess import Preprocess
from model.config import Config, SamplingConfig
from model.data.batches import WHOLE, Batch, Question, Share, stack_clips
from model.demo.captions import captions_of, describe, describe_briefly, describe_object
from model.demo.corpus import clip_id
from model.demo.questions import questions_of
from model.demo.render import render
from model.demo.scene import COLOURS, DURATIONS_SECONDS, SHAPES, SIZES, Scene, lone_object, make_scene, vary
from model.video.sampling import target_times

_NOISE = 4.0  # standard deviation, of 255: about what H.264 at CRF 23 leaves of these clips
_BRIGHTNESS = 6.0
_CONTRAST = 0.06
_VALIDATION_BATCH = 100
_TEXTS = 4000  # captions that stand for all: each of their some 120 words occurs dozens of times


class ScenesConfig(Config):
    """Generated scenes. ``hard_negatives`` is the share of clips followed by one that differs in a single attribute."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = 0
    hard_negatives: float = Field(0.0, ge=0, le=1)
    # The share of captions that leave attributes out, as people do; their false negatives are rare in random batches.
    short_captions: float = Field(0.0, ge=0, le=1)
    # Steps whose clips are a single object each, no two alike, with captions that name only the object: all of the
    # first ``object_warmup_steps``, then this share. Without them a model distinguishes whole scenes by colour,
    # background and motion and does not learn to see shapes.
    object_warmup_steps: int = Field(0, ge=0)
    object_steps: float = Field(0.0, ge=0, le=1)
    validation_clips: int = Field(500, ge=0)

    @property
    def makes_objects(self) -> bool:
        """Whether some steps are of single objects."""
        return self.object_warmup_steps > 0 or self.object_steps > 0


class ScenesData:
    """Training batches of scenes; all clips of a batch have one duration, so that no frame is padding."""

    def __init__(
        self,
        config: ScenesConfig,
        *,
        batch_size: int,
        preprocess: Preprocess,
        sampling: SamplingConfig,
        questions: bool = False,
    ) -> None:
        """``questions``: texts are questions about the scenes (``model.demo.questions``) instead of captions."""
        self.config = config
        self.batch_size = batch_size
        self.preprocess = preprocess
        self.questions = questions
        self.times = {seconds: target_times(sampling, 0.0, seconds) for seconds in DURATIONS_SECONDS}

    @property
    def steps_per_epoch(self) -> None:
        """None: no scene ever comes again. See ``TrainingData``."""
        return None

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Return a share of ``batch_size`` clips of the training split; see ``TrainingData``.

        Everything random is drawn for the whole batch, so that it does not depend on the number of processes.
        """
        rng = np.random.default_rng([self.config.seed, step])
        if step < self.config.object_warmup_steps or rng.random() < self.config.object_steps:
            return self._objects(step, rng, share)
        duration = DURATIONS_SECONDS[int(rng.integers(len(DURATIONS_SECONDS)))]
        named = self._scenes(step, rng)
        scenes = [replace(scene, duration_seconds=duration) for _, scene in named]
        frames = self._draw(scenes, self.times[duration], rng, share)
        names = [name for name, _ in named]
        if not self.questions:
            return _batch(frames, [self._caption(scene, rng) for scene in scenes], names, share)
        asked = [_questions(scene, name) for name, scene in zip(names, scenes, strict=True)]
        chosen = [some[int(rng.integers(len(some)))] for some in asked]
        batch = _batch(frames, [question.text for question in chosen], names, share)
        return replace(batch, questions=[(chosen[row],) for row in share.rows(len(chosen))])

    def _draw(
        self, scenes: list[Scene], times: NDArray[np.float64], rng: np.random.Generator, share: Share
    ) -> NDArray[np.uint8]:
        rows = share.rows(len(scenes))
        frames = np.stack([self._render(scenes[row], times) for row in rows])
        return _augment(frames, rng, len(scenes), rows)

    def _render(self, scene: Scene, times: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Frames of a scene, drawn in a square as large as the model's pictures and brought to their shape."""
        return self.preprocess(render(scene, times, max(self.preprocess.height, self.preprocess.width)))

    def _objects(self, step: int, rng: np.random.Generator, share: Share) -> Batch:
        """Single objects in two frames each, every (colour, shape), or (size, colour, shape), at most once."""
        sized = bool(rng.random() < 0.5)
        kinds = [(size, c, s) for c in COLOURS for s in SHAPES for size in (SIZES if sized else (_pick_size(rng),))]
        chosen = [kinds[row] for row in rng.permutation(len(kinds))[: self.batch_size]]
        times = np.sort(rng.uniform(0, min(DURATIONS_SECONDS), 2))
        scenes = [lone_object(rng, size=size, colour=colour, shape=shape) for size, colour, shape in chosen]
        frames = self._draw(scenes, times, rng, share)
        captions = [describe_object(scene, rng, sized=sized) for scene in scenes]
        names = [f"object-{self.config.seed}-{step}-{row}" for row in range(len(scenes))]
        return _batch(frames, captions, names, share)

    def _scenes(self, step: int, rng: np.random.Generator) -> list[tuple[str, Scene]]:
        named: list[tuple[str, Scene]] = []
        index = step * self.batch_size
        while len(named) < self.batch_size:
            scene, name = make_scene(self.config.seed, "train", index), clip_id(self.config.seed, "train", index)
            named.append((name, scene))
            if len(named) < self.batch_size and rng.random() < self.config.hard_negatives:
                named.append((f"{name}-varied", vary(scene, rng)))
            index += 1
        return named

    def _caption(self, scene: Scene, rng: np.random.Generator) -> str:
        return describe_briefly(scene, rng) if rng.random() < self.config.short_captions else describe(scene, rng)

    def texts(self) -> Iterator[str]:
        """Yield the captions of the first scenes; see ``TrainingData``."""
        seed = self.config.seed
        for index in range(_TEXTS // 2):
            yield from captions_of(make_scene(seed, "train", index), seed, index)

    def answers(self) -> Iterator[str]:
        """Yield the answers about the first scenes; see ``TrainingData``."""
        if not self.questions:
            return
        for index in range(_TEXTS // 2):
            name = clip_id(self.config.seed, "train", index)
            yield from (question.answer for question in _questions(make_scene(self.config.seed, "train", index), name))

    def validation(self) -> Iterator[Batch]:
        """Yield the validation split's first clips with their first caption; see ``TrainingData``."""
        seed, count = self.config.seed, self.config.validation_clips
        for start in range(0, count, _VALIDATION_BATCH):
            indices = range(start, min(start + _VALIDATION_BATCH, count))
            scenes = [make_scene(seed, "val", index) for index in indices]
            frames, mask = stack_clips([self._render(s, self.times[s.duration_seconds]) for s in scenes])
            captions = [tuple(captions_of(scene, seed, index)) for scene, index in zip(scenes, indices, strict=True)]
            yield Batch(
                frames_BFHWC=frames,
                mask_BF=mask,
                captions=[first for first, *_ in captions],
                clip_ids=[clip_id(seed, "val", index) for index in indices],
                references=captions,
                questions=[
                    _questions(scene, clip_id(seed, "val", index)) for scene, index in zip(scenes, indices, strict=True)
                ]
                if self.questions
                else [],
            )


def _questions(scene: Scene, name: str) -> tuple[Question, ...]:
    return tuple(
        Question(video_id=name, text=text, answer=answer, kind=kind) for text, answer, kind in questions_of(scene)
    )


def _pick_size(rng: np.random.Generator) -> str:
    return SIZES[int(rng.integers(len(SIZES)))]


def _batch(frames_BFHWC: NDArray[np.uint8], captions: list[str], names: list[str], share: Share) -> Batch:
    rows = share.rows(len(captions))
    return Batch(
        frames_BFHWC=frames_BFHWC,
        mask_BF=np.ones(frames_BFHWC.shape[:2], bool),
        captions=[captions[row] for row in rows],
        clip_ids=[names[row] for row in rows],
    )


def _augment(frames_BFHWC: NDArray[np.uint8], rng: np.random.Generator, clips: int, rows: range) -> NDArray[np.uint8]:
    """Change the frames of ``rows`` of a batch of ``clips``, drawing for all of them."""
    size = frames_BFHWC.shape[2]
    change = rng.standard_normal((clips, 1, size, size, 3), dtype=np.float32) * np.float32(_NOISE)
    change += rng.uniform(-_BRIGHTNESS, _BRIGHTNESS, (clips, 1, 1, 1, 1)).astype(np.float32)
    contrast = rng.uniform(1 - _CONTRAST, 1 + _CONTRAST, (clips, 1, 1, 1, 1)).astype(np.float32)
    augmented = np.empty_like(frames_BFHWC)
    for row, drawn in enumerate(rows):  # clip by clip stays in the cache, which is twice as fast as all at once
        changed = (frames_BFHWC[row] - np.float32(128)) * contrast[drawn] + (128.5 + change[drawn])
        augmented[row] = changed.clip(0, 255)
    return augmented
