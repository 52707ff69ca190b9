"""Exact scores of a shortlist, from the vectors on the disk.

An approximate index holds codes. The vectors themselves lie in the shards, before the frozen map: a few hundred of them
are gathered through the memory maps, mapped, and multiplied with the query. So the order is exact, the scores are
cosines, and no vector is held in memory.

Legend: Q queries, w width of a shortlist, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

Rows = Callable[[Ids], Floats]
"""Mapped, L2-normalised rows ``(w, D)`` of positions ``(w,)``."""

ROWS_AT_ONCE = 4096
"""Rows gathered together: 8 MB at 512 channels."""


def exact_scores(rows: Rows, queries_QD: Floats, positions_Qw: Ids) -> Floats:
    """Inner products ``(Q, w)`` of each query with vectors of its own; -inf for a position of -1.

    Each query is computed by itself, its positions in ascending order: the result does not depend on other queries.
    """
    scores_Qw = np.full(positions_Qw.shape, -np.inf, dtype=np.float32)
    for q, query_D in enumerate(queries_QD):
        order = np.argsort(positions_Qw[q], kind="stable")
        order = order[positions_Qw[q][order] >= 0]
        for start in range(0, len(order), ROWS_AT_ONCE):
            part = order[start : start + ROWS_AT_ONCE]
            scores_Qw[q, part] = np.einsum("wd,d->w", rows(positions_Qw[q][part]), query_D)
    return scores_Qw
