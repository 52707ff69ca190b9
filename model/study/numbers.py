"""What ``emcl report`` shows, as numbers: the modality gap, frames and words in the subspaces, ranks that change.

In: an encoder, the clips and their encoded corpus. Out: plain arrays; nothing is drawn here.

Shape suffixes: T captions, V videos, N rows, F frames, L words, D channels, K bases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.arrays import unit_rows
from model.data.clips import Clip
from model.emcl.diagnostics import EMCLDiagnostics, diagnose
from model.emcl.em import FrozenMap
from model.encoder import Encoder
from model.evaluate.metrics import RetrievalMetrics, retrieval_metrics
from model.evaluate.run import Corpus
from model.study.calibrate import Comparison, compare_video_ranks
from model.study.per_video_ranks import Ranks, ranking, ranks_of

Floats = NDArray[np.floating[Any]]

_MAX_WORDS = 2000  # of the vocabulary that words are centred by
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Distances of unit vectors: between the means of videos and captions, and cosines of pairs, right and wrong."""

    centroid_distance: float
    matched_cosine: float
    mismatched_cosine: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ModalityGap:
    """Videos with their first captions, before and after the frozen map: numbers, and points on the same two axes.

    ``shown_variance`` is the share of the variance before EMCL that the two axes hold.
    """

    before: Gap
    after: Gap
    points_before: tuple[Floats, Floats]
    points_after: tuple[Floats, Floats]
    shown_variance: float


def modality_gap(encoder: Encoder, corpus: Corpus, frozen: FrozenMap) -> ModalityGap:
    """Measure the gap with the vectors that stage 1 compares; principal axes are those of the vectors before EMCL."""
    starts = np.flatnonzero(np.diff(corpus.video_of_text_T, prepend=-1))
    videos, texts = encoder.pool(corpus.features_VFD, corpus.mask_VF), corpus.text_TD[starts]
    before = unit_rows(videos), unit_rows(texts)
    after = encoder.map_rows(frozen, videos), encoder.map_rows(frozen, texts)
    both = np.concatenate(before).astype(np.float64)
    centre = both.mean(axis=0)
    _, singular, axes = np.linalg.svd(both - centre, full_matrices=False)
    project = axes[:2].T
    return ModalityGap(
        before=_gap(*before),
        after=_gap(*after),
        points_before=((before[0] - centre) @ project, (before[1] - centre) @ project),
        points_after=((after[0] - centre) @ project, (after[1] - centre) @ project),
        shown_variance=float((singular[:2] ** 2).sum() / max((singular**2).sum(), _LEAST)),
    )


def _gap(videos_VD: Floats, texts_VD: Floats) -> Gap:
    cosines_VV = texts_VD @ videos_VD.T
    matched, count = float(np.trace(cosines_VV)), len(cosines_VV)
    return Gap(
        centroid_distance=float(np.linalg.norm(videos_VD.mean(axis=0) - texts_VD.mean(axis=0))),
        matched_cosine=matched / count,
        mismatched_cosine=(float(cosines_VV.sum()) - matched) / max(1, count * (count - 1)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Subspaces:
    """One video with its caption: coordinates of frames and words in the K subspaces, and their similarities.

    Coordinates are in standard deviations, frames relative to all frames, words relative to all words.
    """

    row: int
    words: list[str]
    frames_FK: Floats
    words_LK: Floats
    similarity_FL: Floats
    plain_similarity_FL: Floats

    @property
    def links(self) -> list[tuple[int, str, float]]:
        """Each frame, counted from 1, with its nearest word in the subspaces and their similarity there (figure 1)."""
        nearest_F = self.similarity_FL.argmax(axis=1)
        return [
            (frame + 1, self.words[word], float(self.similarity_FL[frame, word]))
            for frame, word in enumerate(nearest_F)
        ]


class SubspaceView:
    """Coordinates in the subspaces of a frozen map: ``x Z / s``, as in its first half."""

    def __init__(self, encoder: Encoder, clips: Sequence[Clip], corpus: Corpus, frozen: FrozenMap) -> None:
        self._encoder, self._clips, self._corpus = encoder, clips, corpus
        self._axes_DK = (frozen.responsibilities_DK / frozen.base_norms_K).numpy()
        vocabulary = sorted({word for clip in clips for word in words_of(clip.captions[0])})[:_MAX_WORDS]
        frames_ND = unit_rows(corpus.features_VFD[corpus.mask_VF])
        words_ND = unit_rows(encoder.encode_texts(vocabulary))
        self._frames_mean, self._words_mean = frames_ND.mean(axis=0), words_ND.mean(axis=0)
        self._frames_scale = (frames_ND @ self._axes_DK).std(axis=0) + _LEAST
        self._words_scale = (words_ND @ self._axes_DK).std(axis=0) + _LEAST

    def of(self, row: int) -> Subspaces:
        """Look at one video and its first caption."""
        words = words_of(self._clips[row].captions[0])
        frames_FD = unit_rows(self._corpus.features_VFD[row][self._corpus.mask_VF[row]]) - self._frames_mean
        words_LD = unit_rows(self._encoder.encode_texts(words)) - self._words_mean
        frames_FK = frames_FD @ self._axes_DK / self._frames_scale
        words_LK = words_LD @ self._axes_DK / self._words_scale
        return Subspaces(
            row=row,
            words=words,
            frames_FK=frames_FK,
            words_LK=words_LK,
            similarity_FL=unit_rows(frames_FK) @ unit_rows(words_LK).T,
            plain_similarity_FL=unit_rows(frames_FD) @ unit_rows(words_LD).T,
        )


def words_of(caption: str) -> list[str]:
    """The words of a caption, each once; the caption itself if it has none."""
    return list(dict.fromkeys(re.findall(r"\w+", caption))) or [caption]


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """A caption whose video's rank (0-based) changes, and the first videos (rows) without and with EMCL."""

    text: int
    match: int
    rank_without: float
    rank_with: float
    first_without: list[int]
    first_with: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Effect:
    """Retrieval without and with EMCL, their comparison, and the captions whose ranks rise and fall most."""

    without: tuple[RetrievalMetrics, RetrievalMetrics]
    with_emcl: tuple[RetrievalMetrics, RetrievalMetrics]
    comparison: Comparison
    rises: list[Change]
    falls: list[Change]
    first_with_emcl: NDArray[np.intp]


def effect_of_emcl(encoder: Encoder, corpus: Corpus, *, candidates: int, shown: int, hits: int, seed: int) -> Effect:
    """Rank everything twice; pick ``shown`` captions each way with their first ``hits`` videos."""
    plain, corrected = (ranking(encoder, corpus, candidates=candidates, how=how) for how in ("none", "emcl"))
    before, after = ranks_of(plain, corpus), ranks_of(corrected, corpus)
    # A step within the first places weighs more than the same step far behind.
    gains_T = 1 / (after.text_to_video_T + 1) - 1 / (before.text_to_video_T + 1)
    order = np.argsort(-gains_T, kind="stable")

    def change(text: int) -> Change:
        firsts = [
            np.argsort(-ranked.text_to_video_TV[text], kind="stable")[:hits].tolist() for ranked in (plain, corrected)
        ]
        return Change(
            text=text,
            match=int(corpus.video_of_text_T[text]),
            rank_without=float(before.text_to_video_T[text]),
            rank_with=float(after.text_to_video_T[text]),
            first_without=firsts[0],
            first_with=firsts[1],
        )

    found_first = np.unique(corpus.video_of_text_T[after.text_to_video_T <= 0])
    return Effect(
        without=_metrics(before),
        with_emcl=_metrics(after),
        comparison=compare_video_ranks(before.per_video(), after.per_video(), seed=seed),
        rises=[change(int(text)) for text in order[:shown] if gains_T[text] > _LEAST],
        falls=[change(int(text)) for text in order[::-1][:shown] if gains_T[text] < -_LEAST],
        first_with_emcl=found_first,
    )


def _metrics(ranks: Ranks) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    return retrieval_metrics(ranks.text_to_video_T), retrieval_metrics(ranks.video_to_text_V)


def bases_now(encoder: Encoder, corpus: Corpus) -> EMCLDiagnostics:
    """Distinctness and rank of the bases over this corpus: pooled videos and captions in one pass."""
    rows_ND = np.concatenate([encoder.pool(corpus.features_VFD, corpus.mask_VF), corpus.text_TD])
    return diagnose(encoder.net.emcl, torch.from_numpy(rows_ND).to(encoder.device))


@dataclass(frozen=True, kw_only=True)
class TrainingBases:
    """What a run logged about its bases: steps, and for each quantity one value a step."""

    steps: list[int]
    curves: dict[str, list[float]]


def bases_in_training(run: Path) -> TrainingBases | None:
    """Read ``RUN/log.jsonl``; ``None`` if it holds no such measurements.

    Raises ``FileNotFoundError`` without a log, ``ValueError`` that names a line which is not a JSON object.
    """
    log = run / "log.jsonl"
    if not log.is_file():
        raise FileNotFoundError(f"{log} does not exist; --run is the folder of an `emcl train`")
    steps: list[int] = []
    curves: dict[str, list[float]] = {"distinct bases": [], "effective rank": [], "correction / feature norm": []}
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            measured = entry.get("emcl")
            if measured is None:
                continue
            values = [float(measured[key]) for key in ("distinct_bases", "effective_rank", "correction_ratio")]
            steps.append(int(entry["step"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{log}, line {number} is not a line of a training log: {error}") from error
        for curve, value in zip(curves.values(), values, strict=True):
            curve.append(value)
    return TrainingBases(steps=steps, curves=curves) if steps else None
