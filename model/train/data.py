"""Where a run's batches come from: the data source of a configuration, and the loader that prepares batches ahead."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from model.clip.preprocess import Preprocess
from model.data.batches import Batch, Share, TrainingData
from model.data.clips import Clip, ClipData, with_questions
from model.data.manifest import ManifestConfig, ManifestData
from model.data.msrvtt_qa import questions_by_clip, read_questions
from model.data.registry import training_data
from model.data.scenes import ScenesConfig, ScenesData
from model.data.validation import open_for_choosing
from model.train.config import QuestionFiles, TrainConfig

_PREFETCHED = 4  # batches that each worker prepares ahead


def build_data(config: TrainConfig, preprocess: Preprocess) -> TrainingData:
    """Build the data source that ``config.data`` describes."""
    data, sampling, size, epoch_of = config.data, config.model.sampling, config.batch_size, config.epoch_of
    if isinstance(data, ScenesConfig):
        questions = config.task == "qa"
        return ScenesData(data, batch_size=size, preprocess=preprocess, sampling=sampling, questions=questions)
    build = partial(ManifestData, data) if isinstance(data, ManifestConfig) else partial(training_data, data)
    source = build(
        # With questions the batches are made of these, of which there may be more than videos.
        batch_size=size if config.questions is None else 1,
        preprocess=preprocess,
        sampling=sampling,
        epoch_of=epoch_of,
        augmentation=config.augmentation,
    )
    return source if config.questions is None else _about(source, config.questions, config)


def _about(source: ClipData, files: QuestionFiles, config: TrainConfig) -> ClipData:
    """The same clips with questions in the place of their captions."""
    asked = [
        () if path is None else with_questions(clips, questions_by_clip(read_questions(path), _names(clips), str(path)))
        for path, clips in ((files.train, source.clips), (files.validation, source.validation_clips))
    ]
    return ClipData(
        *asked,
        source=str(files.train),
        seed=source.seed,
        batch_size=config.batch_size,
        preprocess=source.preprocess,
        sampling=source.sampling,
        epoch_of=config.epoch_of,
        augmentation=source.augmentation,
    )


def _names(clips: Sequence[Clip]) -> list[str]:
    return [clip.name for clip in clips]


def require_selection_data(config: TrainConfig) -> None:
    """Refuse to choose a model by a manifest that looks like a test set; published sets say which split they give.

    Raises ``model.data.validation.TestSplitError``.
    """
    if isinstance(config.data, ManifestConfig) and config.data.validation is not None:
        open_for_choosing(config.data.validation, "val", allow_missing=config.data.allow_missing)


class _Steps(Dataset[Batch]):
    """One process's batches by step number, so that workers can prepare them ahead."""

    def __init__(self, data: TrainingData, share: Share) -> None:
        self.data = data
        self.share = share

    def __getitem__(self, step: int) -> Batch:
        return self.data.batch(step, self.share)


def batches(data: TrainingData, steps: range, *, share: Share, workers: int) -> Iterator[Batch]:
    """Yield a process's share of each step's batch, prepared by ``workers`` processes, or by this one if 0."""
    return iter(
        DataLoader(
            _Steps(data, share),
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            prefetch_factor=_PREFETCHED if workers else None,
            # Forking a process that runs threads can deadlock.
            multiprocessing_context="spawn" if workers else None,
            collate_fn=_unchanged,
            worker_init_fn=_end_with_parent if workers else None,
            # Its own generator: the loader must not draw from the one that the steps use.
            generator=torch.Generator(),
        )
    )


def _end_with_parent(_: int) -> None:
    """Keep no data worker of a killed run: one that waits for room in its pipe would wait forever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # only workers run this
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _unchanged(batch: Any) -> Any:
    return batch
