"""Retrieval metrics: ranks, recall, median and mean rank, standard errors.

In: a similarity matrix whose rows are queries and whose diagonal holds the matches. Out: ranks and figures in percent.
Agrees with the reference (EMCL-Net ``metrics.py``) wherever no two similarities tie. Ties take the average rank,
where the reference counts every tied place; a NaN is an error, where the reference drops the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

RECALL_AT = (1, 5, 10, 50)


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


def ranks_of_matches(similarity_QN: Floats, matches_Q: NDArray[np.integer[Any]] | None = None) -> NDArray[np.float64]:
    """Return the 0-based rank of each query's match; ties take the average of the places that they share.

    ``matches_Q`` is the match's column (default: the diagonal). -inf is allowed for what must rank last. Raises
    ``ValueError`` for NaN or a matrix without a match for every query.
    """
    if similarity_QN.ndim != 2 or similarity_QN.size == 0:
        raise ValueError(f"similarities must be a non-empty matrix of queries x items, got shape {similarity_QN.shape}")
    queries, items = similarity_QN.shape
    if matches_Q is None:
        if items != queries:
            raise ValueError(f"without matches the matrix must be square, got {queries} queries and {items} items")
        matches_Q = np.arange(queries)
    bad = int(np.isnan(similarity_QN).any(axis=1).sum())
    if bad:
        raise ValueError(f"{bad} of {queries} queries have a NaN similarity; look for damaged features")
    match_Q1 = similarity_QN[np.arange(queries), matches_Q][:, None]
    above_Q = (similarity_QN > match_Q1).sum(axis=1)
    ties_Q = (similarity_QN == match_Q1).sum(axis=1) - 1
    ranks_Q: NDArray[np.float64] = above_Q + ties_Q / 2.0
    return ranks_Q


def retrieval_metrics(ranks_Q: NDArray[np.floating[Any]]) -> RetrievalMetrics:
    """Return recall, median and mean rank of 0-based ranks."""
    count = len(ranks_Q)
    # "<= k - 1" and not "< k": an average rank of 0.5 shares the first place and has not won it.
    recall = {k: 100.0 * int(np.sum(ranks_Q <= k - 1)) / count for k in RECALL_AT}
    errors = {k: float(np.sqrt(value * (100.0 - value) / count)) for k, value in recall.items()}
    return RetrievalMetrics(
        queries=count,
        recall=recall,
        recall_errors=errors,
        median_rank=float(np.median(ranks_Q)) + 1,
        mean_rank=float(np.mean(ranks_Q)) + 1,
    )


def evaluate_similarity(similarity_QN: Floats) -> RetrievalMetrics:
    """Return the metrics of a square matrix whose diagonal holds the matches."""
    return retrieval_metrics(ranks_of_matches(similarity_QN))
