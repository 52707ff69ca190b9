"""Re-scoring of whole similarity matrices. All of it is transductive: it needs every test query at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

DUAL_SOFTMAX_TEMPERATURE = 0.01  # the reference's t2v_temp and v2t_temp


def dual_softmax(similarity_QN: Floats, temperature: float = DUAL_SOFTMAX_TEMPERATURE) -> NDArray[np.float64]:
    """Weigh each item's similarities by a softmax over the queries, times their number (reference §4.3).

    Rows are queries and stay queries: for video → text pass the matrix of videos x texts. Computed in float64, where
    the reference's float32 underflows to zeros that tie. -inf stays -inf.
    """
    scores_QN = np.asarray(similarity_QN, np.float64)
    scaled_QN = scores_QN / temperature
    peaks_N = np.max(scaled_QN, axis=0, keepdims=True)
    exp_QN = np.exp(scaled_QN - np.where(np.isfinite(peaks_N), peaks_N, 0.0))
    prior_QN = exp_QN / np.maximum(exp_QN.sum(axis=0, keepdims=True), np.finfo(np.float64).tiny)
    unmasked = np.isfinite(scores_QN)
    weighted_QN = np.where(unmasked, scores_QN, 0.0) * prior_QN * len(scores_QN)
    return np.where(unmasked, weighted_QN, -np.inf)
