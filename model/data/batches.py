"""What the trainer needs of a data source.

A source is a pure function of the step: ``batch(step)`` is the same whenever and in whatever process it is called. A
resumed run therefore continues with the very batches that it would have seen, and no position is ever stored. Several
processes ask for their shares of the same batch, and only the share is decoded or rendered.

Shape suffixes: B clips, F frames, S height and width, C colour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a video. ``kind`` is MSRVTT-QA's ``answer_type``: what, who, how, when or where."""

    video_id: str
    text: str
    answer: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``frames_BFHWC`` uint8 RGB, zero on padding; ``mask_BF`` True for real frames; caption i belongs to clip i.

    ``references`` are all captions of each clip, in validation batches only. ``questions`` are those about each clip,
    where a run trains on questions: in training batches one, whose text is the caption, in validation batches all.
    """

    frames_BFHWC: NDArray[np.uint8]
    mask_BF: NDArray[np.bool_]
    captions: list[str]
    clip_ids: list[str]
    references: list[tuple[str, ...]] = field(default_factory=list)
    questions: list[tuple[Question, ...]] = field(default_factory=list)

    @property
    def identities(self) -> NDArray[np.int64]:
        """(B, 2): a digest of each row's clip id, and one of its caption, letter case and white space apart.

        Equal digests mean the same video, or the same caption, in whatever process a row was made: they are not
        Python's ``hash``, which differs from process to process (reference §8, 16).
        """
        pairs = zip(self.clip_ids, self.captions, strict=True)
        rows = [(_digest(name), _digest(" ".join(text.lower().split()))) for name, text in pairs]
        return np.array(rows, np.int64).reshape(-1, 2)


def _digest(text: str) -> int:
    # Lone surrogates represent bytes of file names that are not UTF-8.
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), signed=True)


@dataclass(frozen=True, kw_only=True)
class Share:
    """The rows of a global batch that process ``rank`` of ``size`` works on; shares differ by one row at most."""

    rank: int = 0
    size: int = 1

    def rows(self, count: int) -> range:
        """Return the rows of ``count`` that are this share's; all shares in order of rank make up the whole."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)


WHOLE = Share()


class TrainingData(Protocol):
    """A source of training batches and of a fixed validation set."""

    @property
    def steps_per_epoch(self) -> int | None:
        """Whole batches in one pass over the training items, None for a source without an end."""

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        """Return a share of the batch of a training step, counted from 0; shares in order of rank are the batch.

        A video occurs once in it, or once for each of its captions where captions are the items of an epoch.
        """

    def texts(self) -> Iterator[str]:
        """Yield training captions to take a vocabulary from: all, or of an endless source the first thousands."""

    def answers(self) -> Iterator[str]:
        """Yield the answers of training questions, as ``texts`` does captions; nothing where there are no questions."""

    def validation(self) -> Iterator[Batch]:
        """Yield the validation clips once, in a fixed order, one caption each; yield nothing if there are none."""


def stack_clips(clips: Sequence[NDArray[np.uint8]], min_frames: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pad clips (F, S, S, 3) to the longest, or to ``min_frames``: frames (B, F, S, S, 3) and mask (B, F)."""
    longest = max(min_frames, *(len(clip) for clip in clips))
    frames = np.zeros((len(clips), longest, *clips[0].shape[1:]), np.uint8)
    mask = np.zeros((len(clips), longest), bool)
    for row, clip in enumerate(clips):
        frames[row, : len(clip)] = clip
        mask[row, : len(clip)] = True
    return frames, mask


def frames_for(config: ModelConfig, frames: int) -> int:
    """Return the number of frames that a batch with at most ``frames`` real ones is padded to.

    With the pooling mask ``after``, padding contributes to the result, so the reference's frame count is always used.
    """
    return max(frames, config.sampling.max_frames) if config.pooling.mask == "after" else frames


def pad_frames(batch: Batch, frames: int) -> Batch:
    """Append masked, black frames until there are ``frames``; return a batch that has as many unchanged."""
    missing = frames - batch.mask_BF.shape[1]
    if not missing:
        return batch
    return replace(
        batch,
        frames_BFHWC=np.pad(batch.frames_BFHWC, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))),
        mask_BF=np.pad(batch.mask_BF, ((0, 0), (0, missing))),
    )
