"""Hub bases: EM over the rows of a query bank, and how near an item is to all of them.

InfoNCE's optimal critic is log p(q, v) / p(q) p(v), so E_q exp(kappa q·v) should be the same for every item v. Off the
training domain it is not: hubs are near to most queries. With the queries' density as K components,

    E-step   z_nk = softmax_k(kappa b_n·mu_k + log pi_k)
    M-step   mu_k = unit(sum_n z_nk b_n),   pi_k = mean_n z_nk
    bases    m_k = sum_n z_nk b_n / sum_n z_nk
    number   h(v) = 1/kappa log sum_k pi_k exp(kappa v·m_k)

``score - strength * h(v)`` removes what an item owes to being near everything. The gradient of h is the reconstruction
of v from the bases by its responsibilities: EMCL's correction as one number per item. It needs the bases, not the bank,
so an item that is added later has its number from one E-step. EM runs over rows, so nothing depends on the basis of the
feature space, which EM over channels does (docs/method.md).

Shape suffixes: N rows of the bank or items, D channels, K bases, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

BASES, KAPPA, ITERATIONS, STRENGTH = 128, 50.0, 9, 0.5
"""Measured on real CLIP features (docs/method.md): K 128 gains a little more than 64, strength 0.5 more than 1."""

FEWEST_QUERIES = 200
"""A bank of fewer says more of its own texts than of the queries to come."""

_BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class HubBases:
    """Bases of a bank, ``means_KD`` (not of unit norm: a wide base is short), with ``log_weights_K`` and the kernel.

    ``queries`` is the number of rows in the bank and ``source`` where they came from. ``norm`` is the mean norm of its
    raw rows: a base takes part in text-conditioned pooling as a query of that norm.
    """

    means_KD: NDArray[np.float32]
    log_weights_K: NDArray[np.float64]
    kappa: float
    strength: float
    queries: int
    norm: float
    source: str

    @classmethod
    def fit(
        cls,
        bank_ND: Floats,
        *,
        bases: int = BASES,
        kappa: float = KAPPA,
        iterations: int = ITERATIONS,
        strength: float = STRENGTH,
        source: str = "",
    ) -> HubBases:
        """Run EM over raw rows of a bank, at most ``bases`` bases and at most one for every two rows.

        Neither the order of the rows nor a rotation of the space matters. Raises ``ValueError`` for a bank that is
        empty or not finite.
        """
        if bank_ND.ndim != 2 or len(bank_ND) < 2 or not np.isfinite(bank_ND).all():
            raise ValueError(f"hub bases need at least 2 finite rows (N, D) of queries, got {bank_ND.shape}")
        rows_ND = unit(bank_ND)
        count = max(1, min(bases, len(rows_ND) // 2))
        mu_KD, log_pi_K = spread_rows(rows_ND, count), np.full(count, -np.log(count))
        for _ in range(iterations):
            sums_KD, masses_K, _ = e_step(rows_ND, mu_KD, log_pi_K, kappa)
            mu_KD, log_pi_K = unit(sums_KD), np.log(np.maximum(masses_K, 1e-12) / len(rows_ND))
        sums_KD, masses_K, _ = e_step(rows_ND, mu_KD, log_pi_K, kappa)
        return cls(
            means_KD=(sums_KD / np.maximum(masses_K, 1e-12)[:, None]).astype(np.float32),
            log_weights_K=np.log(np.maximum(masses_K, 1e-12) / len(rows_ND)),
            kappa=kappa,
            strength=strength,
            queries=len(rows_ND),
            norm=float(np.linalg.norm(np.asarray(bank_ND, np.float64), axis=1).mean()),
            source=source,
        )

    def numbers(self, rows_ND: Floats) -> NDArray[np.float32]:
        """h of items ``rows_ND`` (any norm) that are scored by cosine: (N,), in the cosine's scale."""
        return self.of_scores((unit(rows_ND) @ self.means_KD.T.astype(np.float64)).T)

    def of_scores(self, scores_KN: Floats) -> NDArray[np.float32]:
        """h from the products of every base with every item, in whatever way items are scored."""
        logits_KN = self.kappa * np.asarray(scores_KN, np.float64) + self.log_weights_K[:, None]
        peaks_N = logits_KN.max(axis=0)
        numbers_N = (peaks_N + np.log(np.exp(logits_KN - peaks_N).sum(axis=0))) / self.kappa
        return np.asarray(numbers_N, np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As NumPy arrays; the inverse of ``from_arrays``."""
        facts = {name: np.array(getattr(self, name)) for name in ("kappa", "strength", "queries", "norm", "source")}
        return {"means": self.means_KD, "log_weights": self.log_weights_K, **facts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> HubBases:
        """Rebuild from ``to_arrays``. Raises ``ValueError`` if an array is missing or does not fit the others."""
        missing = {"means", "log_weights", "kappa", "strength", "queries", "norm", "source"} - set(arrays)
        if missing or arrays["means"].ndim != 2 or arrays["log_weights"].shape != arrays["means"].shape[:1]:
            raise ValueError(f"hub bases are incomplete (missing: {sorted(missing)}); run `emcl index rebuild`")
        return cls(
            means_KD=np.array(arrays["means"], np.float32),
            log_weights_K=np.array(arrays["log_weights"], np.float64),
            kappa=float(arrays["kappa"]),
            strength=float(arrays["strength"]),
            queries=int(arrays["queries"]),
            norm=float(arrays["norm"]),
            source=str(arrays["source"]),
        )


def unit(rows_ND: Floats) -> NDArray[np.float64]:
    """Rows of norm 1 in float64; a zero row stays zero."""
    rows = np.asarray(rows_ND, np.float64)
    norms: NDArray[np.float64] = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit_rows: NDArray[np.float64] = rows / np.where(norms == 0, 1.0, norms)
    return unit_rows


def e_step(
    rows_ND: NDArray[np.float64], mu_KD: NDArray[np.float64], log_pi_K: NDArray[np.float64], kappa: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Sums of the rows by responsibility (K, D), masses (K,), and the mean log-likelihood up to a constant."""
    sums_KD, masses_K, total = np.zeros_like(mu_KD), np.zeros(len(mu_KD)), 0.0
    for start in range(0, len(rows_ND), _BLOCK_ROWS):
        block_ND = rows_ND[start : start + _BLOCK_ROWS]
        logits_NK = kappa * (block_ND @ mu_KD.T) + log_pi_K
        peaks_N1 = logits_NK.max(axis=1, keepdims=True)
        z_NK = np.exp(logits_NK - peaks_N1)
        sums_N1 = z_NK.sum(axis=1, keepdims=True)
        z_NK /= sums_N1
        sums_KD += z_NK.T @ block_ND
        masses_K += z_NK.sum(axis=0)
        total += float((peaks_N1 + np.log(sums_N1)).sum())
    return sums_KD, masses_K, total / len(rows_ND)


def spread_rows(rows_ND: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """``count`` rows, each the farthest from those before it, from the nearest to the mean on.

    A choice by distances alone: it depends neither on the order of the rows nor on the basis of the space.
    """
    chosen = [int(np.argmax(rows_ND @ rows_ND.mean(axis=0)))]
    nearest_N = rows_ND @ rows_ND[chosen[0]]
    for _ in range(count - 1):
        chosen.append(int(np.argmin(nearest_N)))
        np.maximum(nearest_N, rows_ND @ rows_ND[chosen[-1]], out=nearest_N)
    return rows_ND[chosen]
