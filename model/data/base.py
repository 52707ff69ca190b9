"""What the trainer needs of a data source.

A source is a pure function of the step: ``batch(step)`` is the same whenever and in whatever process it is called. A
resumed run therefore continues with the very batches that it would have seen, and no position is ever stored.

Shape suffixes: B clips, F frames, S height and width, C colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``frames_BFSSC`` uint8 RGB, zero on padding; ``mask_BF`` True for real frames; caption i belongs to clip i."""

    frames_BFSSC: NDArray[np.uint8]
    mask_BF: NDArray[np.bool_]
    captions: list[str]
    clip_ids: list[str]


class TrainingData(Protocol):
    """A source of training batches and of a fixed validation set."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a training step, counted from 0. No clip occurs twice in it."""

    def validation(self) -> Iterator[Batch]:
        """Yield the validation clips once, in a fixed order, one caption each; yield nothing if there are none."""


def stack_clips(clips: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pad clips (F, S, S, 3) of different lengths to the longest: frames (B, F, S, S, 3) and mask (B, F)."""
    longest = max(len(clip) for clip in clips)
    frames = np.zeros((len(clips), longest, *clips[0].shape[1:]), np.uint8)
    mask = np.zeros((len(clips), longest), bool)
    for row, clip in enumerate(clips):
        frames[row, : len(clip)] = clip
        mask[row, : len(clip)] = True
    return frames, mask
