"""Retrieval metrics: ranks, recall, median and mean rank, standard errors; one or several sentences for a video.

In: a similarity matrix whose rows are queries, and the column of each query's match. Out: ranks and figures in percent.
Agrees with the reference (EMCL-Net ``metrics.py``) wherever no two similarities tie. Ties take the average rank,
where the reference counts every tied place; the median of an even number lies between the two in the middle; a NaN is
an error, where the reference drops the query.

The second half holds the released code's own rules (``metrics.py``, ``main_retrieval.py``), mistakes included, only for
comparing with its numbers: ``emcl evaluate --metric-rules reference`` and the golden tests. The differences (numbers of
the reference's pitfalls in brackets):

* one sentence per video: every place that ties with the match counts as a rank of its own, so that there are more
  ranks than queries and recalls are shares of the larger number (6);
* several sentences: the median rank of sentences is the lower one of the two in the middle (17), and tied sentences
  rank in their given order;
* MSVD: its loader's cut points are one sentence early, so that the last sentence of a video counts for the next
  video and the final sentence is dropped (7). That a video with a single sentence is also shown with the frames of the
  one before it is not reproduced: it happens while features are gathered.

Shape suffixes: Q queries, N items, T sentences, V videos.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.arrays import row_blocks

Floats = NDArray[np.floating[Any]]

Owners = NDArray[np.integer[Any]]

RECALL_AT = (1, 5, 10, 50)

BLOCK_ELEMENTS = 1 << 22  # similarities that are looked at together; bounds what is needed beside the matrix


@dataclass(frozen=True, kw_only=True)
class RetrievalMetrics:
    """Figures of one direction: ``recall`` in percent by cut-off, ranks counted from 1.

    ``recall_errors`` are binomial standard errors in percentage points: what another draw of as many queries would
    change. They say nothing about another training seed.
    """

    queries: int
    recall: dict[int, float]
    recall_errors: dict[int, float]
    median_rank: float
    mean_rank: float

    def as_dict(self) -> dict[str, float]:
        """Return a flat mapping for JSON: ``R@1``, ``R@1_se``, …, ``MdR``, ``MnR``, ``queries``."""
        flat: dict[str, float] = {"queries": self.queries}
        for k in self.recall:
            flat[f"R@{k}"], flat[f"R@{k}_se"] = self.recall[k], self.recall_errors[k]
        return {**flat, "MdR": self.median_rank, "MnR": self.mean_rank}


def matrix_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut the rows of a matrix into blocks of about four million elements, at least one row each."""
    return row_blocks(shape, BLOCK_ELEMENTS)


def ranks_of_matches(similarity_QN: Floats, matches_Q: Owners | None = None) -> NDArray[np.float64]:
    """Return the 0-based rank of each query's match; ties take the average of the places that they share.

    ``matches_Q`` is the match's column (default: the diagonal). -inf is allowed for what must rank last. Raises
    ``ValueError`` for NaN or a matrix without a match for every query. Needs a few MiB beside the matrix.
    """
    if similarity_QN.ndim != 2 or similarity_QN.size == 0:
        raise ValueError(f"similarities must be a non-empty matrix of queries x items, got shape {similarity_QN.shape}")
    queries, items = similarity_QN.shape
    if matches_Q is None:
        if items != queries:
            raise ValueError(f"without matches the matrix must be square, got {queries} queries and {items} items")
        matches_Q = np.arange(queries)
    blocks = [_ranks(similarity_QN[rows], matches_Q[rows]) for rows in matrix_blocks(similarity_QN.shape)]
    ranks_Q = np.concatenate(blocks)
    bad = int(np.isnan(ranks_Q).sum())
    if bad:
        raise ValueError(f"{bad} of {queries} queries have a NaN similarity; look for damaged features")
    return ranks_Q


def _ranks(block_QN: Floats, matches_Q: Owners) -> NDArray[np.float64]:
    match_Q1 = block_QN[np.arange(len(block_QN)), matches_Q][:, None]
    above_Q = np.count_nonzero(block_QN > match_Q1, axis=1)
    ties_Q = np.count_nonzero(block_QN == match_Q1, axis=1) - 1
    return np.where(np.isnan(block_QN).any(axis=1), np.nan, above_Q + ties_Q / 2.0)


def best_sentence(similarity_VT: Floats, owner_T: Owners) -> Floats:
    """Reduce sentences to videos: (V, T) → (V, V), the best of each video's own sentences (reference §4.2).

    The sentences of a video must stand together, in the order of the videos, and every video must have one; raises
    ``ValueError`` if they do not.
    """
    return np.maximum.reduceat(similarity_VT, sentence_starts(owner_T), axis=1)


def sentence_starts(owner_T: Owners) -> NDArray[np.intp]:
    """Return the first sentence of each video (V,): the cut points. Raises ``ValueError`` for unsorted owners."""
    steps = np.diff(owner_T, prepend=-1)
    if len(owner_T) == 0 or ((steps != 0) & (steps != 1)).any():
        raise ValueError(
            "the sentences of a video must stand together and in the order of the videos, at least one for each; got "
            f"owners {np.asarray(owner_T)[:8].tolist()}…"
        )
    return np.flatnonzero(steps)


def retrieval_metrics(ranks_Q: NDArray[np.floating[Any]]) -> RetrievalMetrics:
    """Return recall, median and mean rank of 0-based ranks."""
    # "<= k - 1" and not "< k": an average rank of 0.5 shares the first place and has not won it.
    hits = {k: int(np.sum(ranks_Q <= k - 1)) for k in RECALL_AT}
    return metrics_of_hits(hits, len(ranks_Q), float(np.median(ranks_Q)) + 1, float(np.mean(ranks_Q)) + 1)


def metrics_of_hits(hits: dict[int, int], queries: int, median_rank: float, mean_rank: float) -> RetrievalMetrics:
    """Return the figures for ``hits`` of ``queries`` by cut-off."""
    recall = {k: 100.0 * count / queries for k, count in hits.items()}
    return RetrievalMetrics(
        queries=queries,
        recall=recall,
        recall_errors={k: float(np.sqrt(value * (100.0 - value) / queries)) for k, value in recall.items()},
        median_rank=median_rank,
        mean_rank=mean_rank,
    )


def evaluate_similarity(similarity_QN: Floats) -> RetrievalMetrics:
    """Return the metrics of a square matrix whose diagonal holds the matches."""
    return retrieval_metrics(ranks_of_matches(similarity_QN))


def text_to_video_metrics(similarity_TV: Floats, owner_T: Owners) -> RetrievalMetrics:
    """Rank every sentence's video among all videos."""
    return retrieval_metrics(ranks_of_matches(similarity_TV, owner_T))


def tied_places(similarity_QN: Floats) -> NDArray[np.intp]:
    """Return the places, from 0, that tie with each query's match on the diagonal, in order of the queries.

    As many as queries if nothing ties, else more.
    """
    columns = []
    for rows in matrix_blocks(similarity_QN.shape):
        block_QN = similarity_QN[rows]
        match_Q1 = block_QN[np.arange(len(block_QN)), np.arange(rows.start, rows.stop)][:, None]
        columns.append(np.nonzero(-np.sort(-block_QN, axis=1) == match_Q1)[1])
    return np.concatenate(columns)


def single_sentence_metrics(similarity_QN: Floats) -> RetrievalMetrics:
    """Return the figures of a square matrix whose diagonal holds the matches, ties counted as the reference does."""
    places = tied_places(similarity_QN)
    return _metrics(places, float(np.median(places)) + 1)


def multi_sentence_metrics(similarity_TV: Floats, owner_T: Owners) -> RetrievalMetrics:
    """Return the figures of every sentence ranked among videos, with the lower median."""
    ranks = []
    for rows in matrix_blocks(similarity_TV.shape):
        order_TV = np.argsort(-similarity_TV[rows], axis=1, kind="stable")
        ranks.append(np.nonzero(order_TV == np.asarray(owner_T)[rows][:, None])[1])
    ranks_T = np.concatenate(ranks)
    return _metrics(ranks_T, float(np.sort(ranks_T)[(len(ranks_T) - 1) // 2]) + 1)


def best_sentence_metrics(similarity_VT: Floats, owner_T: Owners) -> RetrievalMetrics:
    """Return the figures of every video ranked among videos by their best sentence."""
    return single_sentence_metrics(best_sentence(similarity_VT, owner_T))


def shift_msvd_cuts(similarity_TV: Floats, owner_T: Owners) -> tuple[Floats, Owners]:
    """Cut the sentences as the MSVD loader and the evaluator together do: each boundary one sentence early."""
    return similarity_TV[:-1], np.asarray(owner_T)[1:]


def _metrics(ranks: NDArray[np.integer[Any]], median_rank: float) -> RetrievalMetrics:
    hits = {k: int(np.sum(ranks < k)) for k in RECALL_AT}
    return metrics_of_hits(hits, len(ranks), median_rank, float(np.mean(ranks)) + 1)
