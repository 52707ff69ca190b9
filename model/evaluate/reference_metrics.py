"""The released code's own metric rules (EMCL-Net ``metrics.py``, ``main_retrieval.py``), mistakes included.

Only for comparing with its numbers: ``emcl evaluate --metric-rules reference`` and the golden tests. What differs from
``model.evaluate.metrics`` (numbers of the reference's pitfalls in brackets):

* one sentence per video: every place that ties with the match counts as a rank of its own, so that there are more
  ranks than queries and recalls are shares of the larger number (6);
* several sentences: the median rank of sentences is the lower one of the two in the middle (17), and tied sentences
  rank in the order in which they stand;
* MSVD: its loader's cut points stand one sentence early, so that the last sentence of a video counts for the next
  video and the final sentence is dropped (7). That a video with a single sentence is also shown with the frames of the
  one before it is not reproduced: it happens while features are gathered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluate.metrics import (
    RECALL_AT,
    Floats,
    Owners,
    RetrievalMetrics,
    best_sentence,
    metrics_of_hits,
    row_blocks,
)


def tied_places(similarity_QN: Floats) -> NDArray[np.intp]:
    """Return the places, from 0, that tie with each query's match on the diagonal, in order of the queries.

    As many as queries if nothing ties, else more.
    """
    columns = []
    for rows in row_blocks(similarity_QN.shape):
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
    for rows in row_blocks(similarity_TV.shape):
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
