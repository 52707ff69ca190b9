"""Clips of video files with captions → training batches: what every data source that lies on disk shares.

Videos are decoded for every batch, with the sampling of the model, exactly as indexing and evaluation do. A video that
cannot be decoded stops the run with its name: a set that shrinks silently cannot be compared with anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.config import SamplingConfig
from model.data.base import Batch, stack_clips
from model.preprocess import resize_and_crop
from model.video import decode

_VALIDATION_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video file, or the window ``[start_seconds, end_seconds)`` of it, with at least one caption.

    ``video_id`` is the data set's name for it; people's own videos are named by their path.
    """

    path: Path
    captions: tuple[str, ...]
    start_seconds: float = 0.0
    end_seconds: float | None = None
    video_id: str | None = None

    @property
    def name(self) -> str:
        """What batches, reports and errors call the clip."""
        if self.video_id is not None:
            return self.video_id
        if self.start_seconds == 0 and self.end_seconds is None:
            return str(self.path)
        end = "end" if self.end_seconds is None else f"{self.end_seconds:g}"
        return f"{self.path}[{self.start_seconds:g}-{end}]"


def load_frames(clip: Clip, *, image_size: int, sampling: SamplingConfig) -> NDArray[np.uint8]:
    """Decode a clip: (F, image_size, image_size, 3) uint8. Raises ``ValueError`` that names the file."""
    try:
        window = decode(clip.path, sampling=sampling, start_seconds=clip.start_seconds, end_seconds=clip.end_seconds)
        return resize_and_crop(window.frames, image_size)
    except ValueError as error:
        raise ValueError(f"{clip.path} cannot be decoded ({error}); mend it or take it off the list") from error


class ClipData:
    """Training batches of decoded clips: every clip once per epoch, in an order drawn from the seed.

    ``source`` is what an error calls the training clips.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        validation_clips: Sequence[Clip],
        *,
        source: str,
        seed: int,
        batch_size: int,
        image_size: int,
        sampling: SamplingConfig,
    ) -> None:
        self.clips = clips
        self.validation_clips = validation_clips
        self.seed = seed
        self.batch_size = batch_size
        self.image_size = image_size
        self.sampling = sampling
        if len(clips) < batch_size:
            raise ValueError(
                f"{source} lists {len(clips)} videos, fewer than batch_size ({batch_size}), and a batch "
                "holds each video once; lower batch_size"
            )

    def batch(self, step: int) -> Batch:
        """Return a batch of distinct clips, one random caption each; the rest of an epoch is dropped."""
        epoch, position = divmod(step, len(self.clips) // self.batch_size)
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.clips))
        rows = order[position * self.batch_size : (position + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, 1, step])
        clips = [self.clips[row] for row in rows]
        return self._load(clips, [clip.captions[int(rng.integers(len(clip.captions)))] for clip in clips])

    def validation(self) -> Iterator[Batch]:
        """Yield the validation clips with their first caption; see ``TrainingData``."""
        for start in range(0, len(self.validation_clips), _VALIDATION_BATCH):
            clips = self.validation_clips[start : start + _VALIDATION_BATCH]
            yield self._load(clips, [clip.captions[0] for clip in clips])

    def _load(self, clips: Sequence[Clip], captions: list[str]) -> Batch:
        frames, mask = stack_clips(
            [load_frames(clip, image_size=self.image_size, sampling=self.sampling) for clip in clips]
        )
        return Batch(frames_BFSSC=frames, mask_BF=mask, captions=captions, clip_ids=[clip.name for clip in clips])
