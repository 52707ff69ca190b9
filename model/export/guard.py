"""The guard: does a faster runtime rank as fp32 does? Measured on samples, and refused below limits.

In: features of the same samples by PyTorch in fp32 and by the faster runtime. Out: a ``GuardReport`` that says what was
measured and what failed. Compared: the cosine of each text's and frame's two features (is the arithmetic right?), how
many of the ten best videos of each text are the same (does the ranking stay?), and recall where captions belong to
videos (is it as good?). Cosines alone do not suffice: features of one model are close together, and small changes can
reorder them.

Shape suffixes: T texts, V videos, F frames, D channels, S image size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.arrays import unit_rows
from model.data.batches import stack_clips
from model.evaluate.metrics import text_to_video_metrics
from model.runtime.choose import ExportKind
from model.runtime.store import Agreement, GuardReport, Limits, Speed

if TYPE_CHECKING:
    from model.encoder import Encoder

Floats = NDArray[np.float32]

TOP = 10
MIN_VIDEOS = 2 * TOP  # with fewer, ten of all videos would be the same by chance
RECALL_AT = (1, 5, 10)
TEXTS_BY_CHANCE = 2
"""Texts whose video may drop out of the best k, whatever share of the sample they are."""
_VIDEOS_AT_ONCE = 4


# fp32 differs by the order of sums alone; bytes and bf16 really round. Their cosines are those of the worst sample.
LIMITS: dict[ExportKind, Limits] = {
    "onnx": Limits(text_cosine=0.9999, image_cosine=0.9999, top10_overlap=0.99, recall_loss=0.5),
    "onnx-int8": Limits(text_cosine=0.98, image_cosine=0.98, top10_overlap=0.9, recall_loss=2.0),
    "torch-bf16": Limits(text_cosine=0.99, image_cosine=0.99, top10_overlap=0.9, recall_loss=2.0),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What is compared on. Caption t belongs to video ``video_of_text_T[t]``; frames of a video are (F, S, S, 3)."""

    source: str
    frames: Sequence[NDArray[np.uint8]]
    texts: Sequence[str]
    video_of_text_T: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleFeatures:
    """The samples as one runtime encodes them: texts, all real frames, and pooled videos."""

    text_TD: Floats
    frames_RD: Floats
    pooled_VD: Floats
    speed: Speed


def encode_samples(encoder: Encoder, samples: Samples) -> SampleFeatures:
    """Encode with whatever runtime the encoder has; texts one by one, as a service meets them."""
    texts, frames, pooled = [], [], []
    per_text, per_frame = [], []
    for text in samples.texts:
        started = time.perf_counter()
        texts.append(encoder.encode_texts([text]))
        per_text.append(time.perf_counter() - started)
    for start in range(0, len(samples.frames), _VIDEOS_AT_ONCE):
        stacked, mask = stack_clips(samples.frames[start : start + _VIDEOS_AT_ONCE])
        started = time.perf_counter()
        features_BFD = encoder.encode_videos(stacked, mask)
        per_frame.append((time.perf_counter() - started) / mask.sum())
        frames.append(features_BFD[mask])
        pooled.append(encoder.pool(features_BFD, mask))
    # Medians: the first of each shape is prepared longer, and other programs take turns on the cores.
    speed = Speed(text_ms=1000 * float(np.median(per_text)), image_ms=1000 * float(np.median(per_frame)))
    return SampleFeatures(
        text_TD=np.concatenate(texts),
        frames_RD=np.concatenate(frames),
        pooled_VD=np.concatenate(pooled),
        speed=speed,
    )


def judge(kind: ExportKind, samples: Samples, plain: SampleFeatures, fast: SampleFeatures) -> GuardReport:
    """Compare a faster runtime's features with fp32's. Raises ``ValueError`` for too few videos to rank."""
    if len(samples.frames) < MIN_VIDEOS:
        raise ValueError(
            f"{samples.source} has {len(samples.frames)} videos, the guard needs at least {MIN_VIDEOS} to compare the "
            f"{TOP} best of each text; give more"
        )
    limits = LIMITS[kind]
    # Of few samples, one text more or less is more points than the limit, and says nothing.
    most_lost = max(limits.recall_loss, 100 * TEXTS_BY_CHANCE / len(samples.texts))
    limits = limits.model_copy(update={"recall_loss": round(most_lost, 2)})
    text, image = _agreement(plain.text_TD, fast.text_TD), _agreement(plain.frames_RD, fast.frames_RD)
    scores = [unit_rows(side.text_TD) @ unit_rows(side.pooled_VD).T for side in (plain, fast)]
    overlap = _overlap(*scores)
    before, after = ({k: _recall(matrix, samples)[k] for k in RECALL_AT} for matrix in scores)
    failures = [
        f"cosine of {what} is {found.least:.5f} at worst, limit {limit}"
        for what, found, limit in (("texts", text, limits.text_cosine), ("frames", image, limits.image_cosine))
        if not found.least >= limit
    ]
    if not overlap >= limits.top10_overlap:
        failures.append(f"{100 * overlap:.1f} % of the ten best are the same, limit {100 * limits.top10_overlap:.0f} %")
    failures += [
        f"R@{k} falls from {before[k]:.1f} to {after[k]:.1f}, limit {most_lost:.1f} points"
        for k in RECALL_AT
        if before[k] - after[k] > most_lost + 1e-9
    ]
    return GuardReport(
        source=samples.source,
        videos=len(samples.frames),
        frames=len(plain.frames_RD),
        texts=len(samples.texts),
        text=text,
        image=image,
        top10_overlap=overlap,
        recall_plain=before,
        recall_fast=after,
        speed_plain=plain.speed,
        speed_fast=fast.speed,
        limits=limits,
        failures=tuple(failures),
    )


def _agreement(plain_ND: Floats, fast_ND: Floats) -> Agreement:
    cosines_N = np.nan_to_num((unit_rows(plain_ND) * unit_rows(fast_ND)).sum(axis=1), nan=-1.0)
    return Agreement(least=float(cosines_N.min()), mean=float(cosines_N.mean()))


def _overlap(plain_TV: Floats, fast_TV: Floats) -> float:
    best = [np.argsort(-matrix, axis=1, kind="stable")[:, :TOP] for matrix in (plain_TV, fast_TV)]
    return float(np.mean([len(np.intersect1d(one, other)) / TOP for one, other in zip(*best, strict=True)]))


def _recall(scores_TV: Floats, samples: Samples) -> dict[int, float]:
    # A runtime that computes NaN finds nothing; its cosines have failed already.
    found: Any = text_to_video_metrics(np.nan_to_num(scores_TV, nan=-np.inf), samples.video_of_text_T)
    recall: dict[int, float] = found.recall
    return recall
