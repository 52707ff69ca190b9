"""Re-scoring of similarities against hubs: items that are near to every query. Dual softmax and QB-Norm.

Both compare a similarity with what an item's similarities usually are, and so need a statistic of every item (column):
the log-sum-exp over queries. *Dual softmax* takes it over the very queries that are ranked: it is transductive and of
no use to a service, which sees one query at a time. *QB-Norm* takes it over a fixed bank of other queries, captions
that were trained on, and so can be used for a single query.

Statistics are collected block by block and applied row by row, in float64 and without any exponential that could
overflow. Rows are queries and stay queries: for video → text pass the matrix of videos x texts.

Shape suffixes: Q queries, B queries of the bank, N items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluate.metrics import matrix_blocks

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

DUAL_SOFTMAX_TEMPERATURE = 0.01  # the reference's t2v_temp and v2t_temp
QB_NORM_BETA, QB_NORM_TOP = 20.0, 1  # the authors' values for cosines (reference §4.4)


class ColumnLogSums:
    """log Σ exp(scale · s) of every column, over the rows of as many blocks as are added. -inf adds nothing."""

    def __init__(self, items: int, scale: float) -> None:
        self.scale = scale
        self.rows = 0
        self._peaks_N = np.full(items, -np.inf)
        self._sums_N = np.zeros(items)

    def add(self, block_QN: Floats) -> None:
        """Add rows. Raises ``ValueError`` if one has a NaN or +inf."""
        scaled_QN = np.asarray(block_QN, np.float64) * self.scale
        peaks_N = np.maximum(self._peaks_N, scaled_QN.max(axis=0, initial=-np.inf))
        if np.isnan(peaks_N).any() or np.isposinf(peaks_N).any():
            raise ValueError("similarities hold a NaN or +infinity; look for damaged features")
        finite_N = np.where(np.isfinite(peaks_N), peaks_N, 0.0)
        self._sums_N *= np.exp(self._peaks_N - finite_N)
        self._sums_N += np.exp(scaled_QN - finite_N).sum(axis=0)
        self._peaks_N = peaks_N
        self.rows += len(block_QN)

    @property
    def values(self) -> Doubles:
        """(N,) the log-sums, -inf where nothing finite was added."""
        with np.errstate(divide="ignore"):
            return np.where(np.isfinite(self._peaks_N), self._peaks_N + np.log(self._sums_N), -np.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class DualSoftmax:
    """Weighs a similarity by the softmax over queries of its item, times their number (reference §4.3)."""

    log_sums_N: Doubles
    queries: int
    temperature: float

    @classmethod
    def fit(cls, similarity_QN: Floats, temperature: float = DUAL_SOFTMAX_TEMPERATURE) -> DualSoftmax:
        """Collect the statistics of all queries that are to be ranked; -inf marks items that are not candidates."""
        sums = ColumnLogSums(similarity_QN.shape[1], 1.0 / temperature)
        for rows in matrix_blocks(similarity_QN.shape):
            sums.add(similarity_QN[rows])
        return cls(log_sums_N=sums.values, queries=sums.rows, temperature=temperature)

    def rescore(self, block_QN: Floats) -> Doubles:
        """Re-score rows of the matrix that this was fitted on. -inf stays -inf."""
        scores_QN = np.asarray(block_QN, np.float64)
        candidate_QN = np.isfinite(scores_QN)
        known_QN = np.where(candidate_QN, scores_QN, 0.0)
        floor_N = np.where(np.isfinite(self.log_sums_N), self.log_sums_N, 0.0)
        prior_QN = np.exp(np.minimum(known_QN / self.temperature - floor_N, 0.0))
        return np.where(candidate_QN, known_QN * prior_QN * self.queries, -np.inf)


def dual_softmax(similarity_QN: Floats, temperature: float = DUAL_SOFTMAX_TEMPERATURE) -> Doubles:
    """Re-score a whole matrix by dual softmax. In float64, where the reference's float32 underflows to zeros that tie.

    Transductive: it needs every test query at once.
    """
    return DualSoftmax.fit(similarity_QN, temperature).rescore(similarity_QN)


@dataclass(frozen=True, kw_only=True, eq=False)
class BankNorm:
    """QB-Norm with a fixed bank: what the bank's queries say of every item.

    ``log_sums_N`` is log Σ_b exp(beta · s_bn). ``activated_N`` is True for the items that are among the ``top`` best of
    some query of the bank: hubs. A row is re-scored only if its best item is one (dynamic inverted softmax).
    """

    log_sums_N: Doubles
    activated_N: NDArray[np.bool_]
    queries: int
    beta: float
    top: int

    @classmethod
    def fit(
        cls, blocks: Iterable[Floats], items: int, *, beta: float = QB_NORM_BETA, top: int = QB_NORM_TOP
    ) -> BankNorm:
        """Collect the statistics of a bank from blocks (B, N) of its similarities, of the kind that will be re-scored.

        Raises ``ValueError`` for an empty bank or values that are not finite.
        """
        if beta <= 0 or not 1 <= top <= items:
            raise ValueError(f"QB-Norm needs beta > 0 and top from 1 to the {items} items, got beta {beta}, top {top}")
        sums, activated_N = ColumnLogSums(items, beta), np.zeros(items, bool)
        for block_BN in blocks:
            for rows in matrix_blocks(block_BN.shape):
                sums.add(block_BN[rows])
                activated_N[np.argpartition(block_BN[rows], items - top, axis=1)[:, items - top :]] = True
        log_sums_N = sums.values
        if not np.isfinite(log_sums_N).all():
            raise ValueError(
                f"the query bank of {sums.rows} queries says nothing of {int((~np.isfinite(log_sums_N)).sum())} items; "
                "it needs a query, and a finite similarity for every item"
            )
        return cls(log_sums_N=log_sums_N, activated_N=activated_N, queries=sums.rows, beta=beta, top=top)

    @property
    def hubness(self) -> Doubles:
        """(N,) how similar an item is to the bank: the soft maximum (1/beta) log mean exp(beta · s), in its scale."""
        hubness_N: Doubles = (self.log_sums_N - np.log(self.queries)) / self.beta
        return hubness_N

    def applies(self, block_QN: Floats) -> NDArray[np.bool_]:
        """(Q,) whether a row's best item is a hub, so that the row is re-scored."""
        best_Q = np.argmax(block_QN, axis=1)
        applies_Q: NDArray[np.bool_] = self.activated_N[best_Q] & np.isfinite(block_QN[np.arange(len(best_Q)), best_Q])
        return applies_Q

    def rescore(self, block_QN: Floats) -> Doubles:
        """Re-score rows; the others stay as they are. Ranks are QB-Norm's: a new matrix, the input is not touched.

        A re-scored similarity is ``s - hubness``, the logarithm of the authors' exp(beta s) / Σ_b exp(beta s_b) divided
        by beta, up to a constant: the same order, no overflow. -inf stays -inf. Rows are on different scales: rank
        within a row only.
        """
        scores_QN = np.array(block_QN, np.float64)
        rows_Q = self.applies(scores_QN)
        scores_QN[rows_Q] -= self.hubness
        return scores_QN

    def ratios(self, block_QN: Floats) -> Doubles:
        """Re-score rows to the authors' own numbers, exp(beta s) / Σ_b exp(beta s_b); for comparing with them."""
        scores_QN = np.array(block_QN, np.float64)
        rows_Q = self.applies(scores_QN)
        scores_QN[rows_Q] = np.exp(self.beta * scores_QN[rows_Q] - self.log_sums_N)
        return scores_QN

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The statistics as NumPy arrays, for ``np.savez``; the inverse of ``from_arrays``."""
        return {
            "log_sums": self.log_sums_N,
            "activated": self.activated_N,
            "queries": np.array(self.queries),
            "beta": np.array(self.beta),
            "top": np.array(self.top),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> BankNorm:
        """Rebuild the statistics. Raises ``ValueError`` if an array is missing or does not fit the others."""
        missing = {"log_sums", "activated", "queries", "beta", "top"} - set(arrays.keys())
        if missing:
            raise ValueError(f"query bank lacks the arrays {sorted(missing)}; compute it again")
        log_sums_N, activated_N = arrays["log_sums"], arrays["activated"]
        if log_sums_N.ndim != 1 or activated_N.shape != log_sums_N.shape or activated_N.dtype != np.bool_:
            raise ValueError(
                f"query bank expects log sums (N,) and as many flags, got {log_sums_N.shape} and {activated_N.shape} "
                f"{activated_N.dtype}; compute it again"
            )
        return cls(
            log_sums_N=np.array(log_sums_N, np.float64),
            activated_N=np.array(activated_N),
            queries=int(arrays["queries"]),
            beta=float(arrays["beta"]),
            top=int(arrays["top"]),
        )
