"""From score matrices to rows of the table: plain, with dual softmax, with QB-Norm; both directions.

Matrices are looked at in blocks of rows, which are re-scored and filled one after the other, so that beside the
matrices themselves a few MiB are enough.

Shape suffixes: T captions, V videos, Q queries, N items, B queries of a bank, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model.evaluate import metrics
from model.evaluate.corpus import Corpus, Floats
from model.evaluate.hubness import BankNorm, DualSoftmax
from model.evaluate.metrics import (
    Owners,
    RetrievalMetrics,
    matrix_blocks,
    ranks_of_matches,
    retrieval_metrics,
    sentence_starts,
)
from model.evaluate.protocols import Way
from model.evaluate.rank import Ranked, Scores, fill_scores

MetricRules = Literal["corrected", "reference", "reference-msvd"]
"""``corrected`` is ``model.evaluate.metrics``; ``reference`` is ``model.evaluate.metrics``;
``reference-msvd`` also shifts the cut points as the released MSVD loader does."""

_BANK_TEXTS_AT_ONCE = 256


class Pairing(Protocol):
    """Which texts belong to which videos: a ``Corpus``, or exported features."""

    @property
    def video_of_text_T(self) -> NDArray[np.intp]:  # noqa: N802
        """The video of each text, rising."""
        ...

    @property
    def multi_sentence(self) -> bool:
        """Whether some video has several texts."""
        ...


class Rescorer(Protocol):
    """Re-scores rows of a matrix; see ``model.evaluate.hubness``."""

    def rescore(self, block_QN: Scores, /) -> NDArray[np.float64]:
        """Return new scores of the rows of a block."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ``transductive`` rankings need all queries at once, which a service never has.

    ``video_to_text`` is None where a way of re-scoring ranks only videos.
    """

    name: str
    transductive: bool
    text_to_video: RetrievalMetrics
    video_to_text: RetrievalMetrics | None


@dataclass(frozen=True, kw_only=True, eq=False)
class BankRows:
    """Encoded queries of a bank, raw, with QB-Norm's settings: texts (B, D), and perhaps frame features of videos.

    Texts are asked for videos, and ``features_BFD`` with ``mask_BF`` for captions; without them only videos are ranked.
    """

    text_BD: Floats
    beta: float
    top: int
    features_BFD: Floats | None = None
    mask_BF: NDArray[np.bool_] | None = None


def rows_of(
    way: Way,
    corpus: Corpus,
    *,
    bank: BankRows | None,
    temperature: float,
    rules: MetricRules = "corrected",
) -> Iterator[Row]:
    """Measure one way: as it is, with dual softmax, and with QB-Norm if there is a bank."""
    ranked = way.ranked
    yield measure(way.name, ranked, corpus, behind=way.behind, rules=rules)
    dual = (
        DualSoftmax.fit(ranked.text_to_video_TV, temperature),
        DualSoftmax.fit(ranked.video_to_text_VT, temperature),
    )
    name = f"{way.name} + dual softmax"
    yield measure(name, ranked, corpus, behind=way.behind, rules=rules, rescorers=dual, transductive=True)
    if bank is not None:
        norms = fit_bank(way, bank, len(corpus.features_VFD)), fit_video_bank(way, bank, len(corpus.text_TD))
        name = f"{way.name} + QB-Norm"
        yield measure(name, ranked, corpus, behind=way.behind, rules=rules, rescorers=norms)


def fit_bank(way: Way, bank: BankRows, videos: int) -> BankNorm:
    """Score the bank's queries as the set's captions were scored, and collect what QB-Norm needs."""
    starts = range(0, len(bank.text_BD), _BANK_TEXTS_AT_ONCE)
    blocks = (way.score_texts(bank.text_BD[start : start + _BANK_TEXTS_AT_ONCE]) for start in starts)
    return BankNorm.fit(blocks, videos, beta=bank.beta, top=min(bank.top, videos))


def fit_video_bank(way: Way, bank: BankRows, captions: int) -> BankNorm | None:
    """The same for the captions, by the bank's videos; None if it has none."""
    features_BFD, mask_BF = bank.features_BFD, bank.mask_BF
    if features_BFD is None or mask_BF is None:
        return None
    starts = range(0, len(features_BFD), _BANK_TEXTS_AT_ONCE)
    parts = (slice(start, start + _BANK_TEXTS_AT_ONCE) for start in starts)
    blocks = (way.score_videos(features_BFD[part], mask_BF[part]) for part in parts)
    return BankNorm.fit(blocks, captions, beta=bank.beta, top=min(bank.top, captions))


def measure(
    name: str,
    ranked: Ranked,
    corpus: Pairing,
    *,
    transductive: bool = False,
    behind: Ranked | None = None,
    rescorers: tuple[Rescorer | None, Rescorer | None] | None = None,
    rules: MetricRules = "corrected",
) -> Row:
    """Compute both directions' metrics. Of several captions of a video the best counts (reference §4.2).

    ``rescorers`` re-score text → video and video → text; a direction without one is left out. ``behind`` orders what
    is no candidate (-inf), after the candidates.
    """
    to_videos, to_texts = rescorers or (None, None)
    videos = _Side(ranked.text_to_video_TV, None if behind is None else behind.text_to_video_TV, to_videos)
    texts = _Side(ranked.video_to_text_VT, None if behind is None else behind.video_to_text_VT, to_texts)
    left_out = rescorers is not None and to_texts is None
    owner_T = corpus.video_of_text_T
    if rules == "corrected":
        text_to_video = retrieval_metrics(videos.ranks(owner_T))
        video_to_text = None if left_out else retrieval_metrics(texts.ranks_of_best(owner_T))
    else:
        text_to_video = _reference_videos(videos.whole(), corpus, rules)
        video_to_text = None if left_out else _reference_texts(texts.whole(), corpus, rules)
    return Row(name=name, transductive=transductive, text_to_video=text_to_video, video_to_text=video_to_text)


@dataclass(frozen=True, eq=False)
class _Side:
    """One direction: scores, what orders the rest, and a re-scoring, put together block by block."""

    scores_QN: Scores
    behind_QN: Scores | None
    rescorer: Rescorer | None

    def blocks(self) -> Iterator[tuple[slice, Scores]]:
        for rows in matrix_blocks(self.scores_QN.shape):
            block_QN = self.scores_QN[rows]
            if self.rescorer is not None:
                block_QN = self.rescorer.rescore(block_QN)
            if self.behind_QN is not None:
                block_QN = fill_scores(block_QN, self.behind_QN[rows])
            yield rows, block_QN

    def ranks(self, matches_Q: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        return np.concatenate([ranks_of_matches(block_QN, matches_Q[rows]) for rows, block_QN in self.blocks()])

    def ranks_of_best(self, owner_N: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Ranks of the queries' own items, of which the best counts; query q owns the items of ``owner_N`` q."""
        starts, ranks = sentence_starts(owner_N), []
        for rows, block_QN in self.blocks():
            if len(starts) < len(owner_N):
                block_QN = np.maximum.reduceat(block_QN, starts, axis=1)
            ranks.append(ranks_of_matches(block_QN, np.arange(rows.start, rows.stop)))
        return np.concatenate(ranks)

    def whole(self) -> Scores:
        return np.concatenate([block_QN for _, block_QN in self.blocks()])


def _reference_videos(scores_TV: Scores, corpus: Pairing, rules: MetricRules) -> RetrievalMetrics:
    _refuse_nan(scores_TV)
    owner_T: Owners = corpus.video_of_text_T
    if not corpus.multi_sentence:
        return metrics.single_sentence_metrics(scores_TV)
    if rules == "reference-msvd":
        scores_TV, owner_T = metrics.shift_msvd_cuts(scores_TV, owner_T)
    return metrics.multi_sentence_metrics(scores_TV, owner_T)


def _reference_texts(scores_VT: Scores, corpus: Pairing, rules: MetricRules) -> RetrievalMetrics:
    _refuse_nan(scores_VT)
    owner_T: Owners = corpus.video_of_text_T
    if rules == "reference-msvd" and corpus.multi_sentence:
        shifted_TV, owner_T = metrics.shift_msvd_cuts(scores_VT.T, owner_T)
        scores_VT = shifted_TV.T
    return metrics.best_sentence_metrics(scores_VT, owner_T)


def _refuse_nan(scores_QN: Scores) -> None:
    if np.isnan(scores_QN).any():
        raise ValueError("similarities hold a NaN, which the reference's rules would drop; look for damaged features")
