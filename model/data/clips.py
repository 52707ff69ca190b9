"""Clips of video files with captions → training batches: what all data sources on disk share.

Videos are decoded for every batch, with the sampling of the model, exactly as indexing and evaluation do. A video that
cannot be decoded stops the run with its name: a set that shrinks silently cannot be compared with anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.clip.preprocess import Preprocess
from model.config import SamplingConfig
from model.data.augment import Augmentation, NoAugmentation, augment
from model.data.batches import WHOLE, Batch, Question, Share, stack_clips
from model.video.sampling import decode

_VALIDATION_BATCH = 50

# What an epoch has once: every video, with one of its captions at random, or every caption (the reference's way).
EpochOf: TypeAlias = Literal["videos", "captions"]
Change: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
NO_AUGMENTATION = NoAugmentation()


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video file, or the window ``[start_seconds, end_seconds)`` of it, with at least one caption.

    ``video_id`` is the data set's name for it; users' own videos are identified by their path. ``questions`` are about
    the clip, for runs that train on them (``with_questions``).
    """

    path: Path
    captions: tuple[str, ...]
    start_seconds: float = 0.0
    end_seconds: float | None = None
    video_id: str | None = None
    questions: tuple[Question, ...] = ()

    @property
    def name(self) -> str:
        """What batches, reports and errors call the clip."""
        if self.video_id is not None:
            return self.video_id
        if self.start_seconds == 0 and self.end_seconds is None:
            return str(self.path)
        end = "end" if self.end_seconds is None else f"{self.end_seconds:g}"
        return f"{self.path}[{self.start_seconds:g}-{end}]"


def load_frames(
    clip: Clip,
    *,
    preprocess: Preprocess,
    sampling: SamplingConfig,
    change: Change | None = None,
) -> NDArray[np.uint8]:
    """Decode a clip: (F, height, width, 3) uint8. Raises ``ValueError`` that names the file.

    ``change`` is applied to the decoded frames, (F, H, W, 3), before they are resized.
    """
    try:
        window = decode(clip.path, sampling=sampling, start_seconds=clip.start_seconds, end_seconds=clip.end_seconds)
        return preprocess(window.frames if change is None else change(window.frames))
    except ValueError as error:
        raise ValueError(f"{clip.path} cannot be decoded ({error}); repair it or remove it from the list") from error


class ClipData:
    """Training batches of decoded clips: every item once per epoch, in an order drawn from the seed for each epoch.

    What is left at the end of an epoch and does not fill a batch is dropped. ``source`` is what an error calls the
    training clips. With ``epoch_of="captions"`` a batch may hold a video with several of its captions. ``augmentation``
    changes training clips and never validation clips.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        validation_clips: Sequence[Clip],
        *,
        source: str,
        seed: int,
        batch_size: int,
        preprocess: Preprocess,
        sampling: SamplingConfig,
        epoch_of: EpochOf = "videos",
        augmentation: Augmentation = NO_AUGMENTATION,
    ) -> None:
        self.clips = clips
        # (clip, caption) by item, None for videos, whose captions are drawn.
        self._pairs = _pairs(clips) if epoch_of == "captions" else None
        self.validation_clips = validation_clips
        self.seed = seed
        self.batch_size = batch_size
        self.preprocess = preprocess
        self.sampling = sampling
        self.augmentation = augmentation
        if self._items < batch_size:
            raise ValueError(
                f"{source} lists {self._items} {epoch_of}, fewer than batch_size ({batch_size}), and a batch "
                "holds each once; lower batch_size"
            )

    @property
    def _items(self) -> int:
        return len(self.clips) if self._pairs is None else len(self._pairs)

    @property
    def steps_per_epoch(self) -> int:
        """See ``TrainingData``."""
        return self._items // self.batch_size

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Return a share of a batch of distinct items; the rest of an epoch is dropped. See ``TrainingData``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(self._items)
        items = order[position * self.batch_size : (position + 1) * self.batch_size]
        # Drawn for the whole batch, whatever the share, so that the captions do not depend on the number of processes.
        pairs = self._with_captions(items, np.random.default_rng([self.seed, 1, step]))
        rows = share.rows(self.batch_size)
        clips = [self.clips[pairs[row][0]] for row in rows]
        captions = [self.clips[clip].captions[caption] for clip, caption in (pairs[row] for row in rows)]
        loaded = self._load(clips, captions, [self._change(step, row) for row in rows])
        asked = [self.clips[clip].questions[text : text + 1] for clip, text in (pairs[row] for row in rows)]
        return replace(loaded, questions=asked) if any(asked) else loaded

    def _change(self, step: int, row: int) -> Change | None:
        """What the clip in ``row`` of the whole batch of ``step`` undergoes: the same in any process, at any time."""
        config = self.augmentation
        if isinstance(config, NoAugmentation):
            return None
        return lambda frames: augment(frames, config, np.random.default_rng([self.seed, 2, step, row]))

    def _with_captions(self, items: NDArray[np.int64], rng: np.random.Generator) -> list[tuple[int, int]]:
        if self._pairs is not None:
            return [self._pairs[item] for item in items]
        return [(int(item), int(rng.integers(len(self.clips[item].captions)))) for item in items]

    def texts(self) -> Iterator[str]:
        """Yield all training captions; see ``TrainingData``."""
        return (text for clip in self.clips for text in clip.captions)

    def answers(self) -> Iterator[str]:
        """Yield the answers of all training questions; see ``TrainingData``."""
        return (question.answer for clip in self.clips for question in clip.questions)

    def validation(self) -> Iterator[Batch]:
        """Yield the validation clips with their first caption; see ``TrainingData``."""
        for start in range(0, len(self.validation_clips), _VALIDATION_BATCH):
            clips = self.validation_clips[start : start + _VALIDATION_BATCH]
            loaded = self._load(clips, [clip.captions[0] for clip in clips], [None] * len(clips))
            yield replace(
                loaded, references=[clip.captions for clip in clips], questions=[clip.questions for clip in clips]
            )

    def _load(self, clips: Sequence[Clip], captions: list[str], changes: Sequence[Change | None]) -> Batch:
        frames, mask = stack_clips(
            [
                load_frames(clip, preprocess=self.preprocess, sampling=self.sampling, change=change)
                for clip, change in zip(clips, changes, strict=True)
            ]
        )
        return Batch(frames_BFHWC=frames, mask_BF=mask, captions=captions, clip_ids=[clip.name for clip in clips])


def with_questions(clips: Sequence[Clip], questions: Sequence[tuple[Question, ...]]) -> tuple[Clip, ...]:
    """Put questions in the place of the clips' captions; clips without any are left out."""
    return tuple(
        replace(clip, captions=tuple(question.text for question in asked), questions=asked)
        for clip, asked in zip(clips, questions, strict=True)
        if asked
    )


def _pairs(clips: Sequence[Clip]) -> list[tuple[int, int]]:
    return [(row, caption) for row, clip in enumerate(clips) for caption in range(len(clip.captions))]
