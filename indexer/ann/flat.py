"""Exact search in float32 contiguous rows, as fast as the memory delivers them.

One query is a scan of all rows, each thread scanning its share (FAISS gives one query to one thread, and scans once for
each query of a batch). A batch is a matrix product instead, whose last bits depend on the other queries: so it only
makes a shortlist with a few to spare, which is scored again by the kernel of the scan. Where the spare ones do not
settle who belongs to the best, that query is scanned alone. The answer is the same, to the last bit, alone and in a
batch, and whatever the order of the rows.

Legend: Q queries, N rows, D channels, k neighbours, w width of a shortlist.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BATCH_QUERIES = 5
"""From so many queries on, one matrix product is faster than a scan for each."""

NARROW_DIM = 64
"""With fewer channels FAISS has kernels that score several rows together and round by where a row stands: in a store
that was built in another order, or behind a filter, a video would score otherwise in the last bits. So narrow rows are
scored one by one, and never multiplied."""

SPARE = 32
"""Rows taken beyond those wanted when a matrix product makes the shortlist."""

BLOCK_ROWS = 2048
"""Rows scored before they are compared with the best so far: their scores stay in the first cache."""

ROWS_PER_THREAD = 16_384
"""Fewer rows than that are not worth another thread."""

_pool_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


class FlatScan:
    """Searches the rows of a ``faiss.IndexFlat`` over inner products; rows and queries have a norm of at most 1."""

    def __init__(self, index: faiss.IndexFlat) -> None:
        always_multiply()
        self._index = index
        count, dim = int(index.ntotal), int(index.d)
        self._rows_ND: Floats = np.zeros((0, dim), dtype=np.float32)
        if count:
            self._rows_ND = faiss.rev_swig_ptr(index.get_xb(), count * dim).reshape(count, dim)

    def search(self, queries_QD: Floats, k: int, keep_N: Bools | None = None) -> tuple[Floats, Ids]:
        """The k best rows (k at most N) of each query: scores ``(Q, k)``, descending, and positions ``(Q, k)``.

        With ``keep_N`` of those rows alone; where they are fewer than k, scores are -inf and positions -1. Equal scores
        are ordered by position.
        """
        worth_it = len(queries_QD) >= BATCH_QUERIES and len(self._rows_ND) >= BLOCK_ROWS
        if worth_it and keep_N is None and queries_QD.shape[1] >= NARROW_DIM:
            return self._multiply(queries_QD, k)
        found = [self._scan(queries_QD[q : q + 1], k, keep_N) for q in range(len(queries_QD))]
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])

    def scores(self, queries_QD: Floats, positions_Qw: Ids) -> Floats:
        """Inner products ``(Q, w)`` of each query with rows of its own; -inf for a position of -1."""
        scores_Qw = np.empty(positions_Qw.shape, dtype=np.float32)
        positions_Qw = np.ascontiguousarray(positions_Qw, dtype=np.int64)
        given, out, labels = (faiss.swig_ptr(array) for array in (queries_QD, scores_Qw, positions_Qw))
        self._index.compute_distance_subset(len(queries_QD), given, positions_Qw.shape[1], out, labels)
        return scores_Qw

    def _scan(self, query_1D: Floats, k: int, keep_N: Bools | None) -> tuple[Floats, Ids]:
        bounds = self._shares(least=1)
        if len(bounds) == 2:
            scores, positions = self._scan_part(query_1D, k, keep_N, *bounds)
        else:
            parts = _threads().map(
                lambda n: self._scan_part(query_1D, k, keep_N, bounds[n], bounds[n + 1]), range(len(bounds) - 1)
            )
            scores, positions = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(scores) < k:
            scores = np.pad(scores, (0, k - len(scores)), constant_values=-np.inf)
            positions = np.pad(positions, (0, k - len(positions)), constant_values=-1)
        return best_first(scores[None], positions[None], k)

    def _scan_part(self, query_1D: Floats, k: int, keep_N: Bools | None, start: int, stop: int) -> tuple[Floats, Ids]:
        """At least the k best of the rows from ``start`` to ``stop``, in no order."""
        block_scores = np.empty(BLOCK_ROWS, dtype=np.float32)
        scores = [np.zeros(0, dtype=np.float32)]
        positions = [np.zeros(0, dtype=np.int64)]
        held, least = 0, np.float32(-np.inf)
        for first in range(start, stop, BLOCK_ROWS):
            size = min(BLOCK_ROWS, stop - first)
            self._score_block(query_1D, first, block_scores[:size])
            good = block_scores[:size] >= least
            if keep_N is not None:
                good &= keep_N[first : first + size]
            better = np.flatnonzero(good)
            if len(better) == 0:
                continue
            scores.append(block_scores[better])
            positions.append(better + first)
            held += len(better)
            if held >= 4 * k:
                scores, positions, least = _cut(np.concatenate(scores), np.concatenate(positions), k)
                held = len(scores[0])
        return np.concatenate(scores), np.concatenate(positions)

    def _score_block(self, query_1D: Floats, first: int, out_N: Floats) -> None:
        """Inner products of a query with the rows from ``first`` on, as many as ``out_N`` takes."""
        size, dim = len(out_N), query_1D.shape[1]
        if dim < NARROW_DIM:
            out_N[:] = self.scores(query_1D, np.arange(first, first + size, dtype=np.int64)[None])[0]
            return
        out, given, rows = (faiss.swig_ptr(array) for array in (out_N, query_1D, self._rows_ND[first:]))
        faiss.fvec_inner_products_ny(out, given, rows, dim, size)

    def _multiply(self, queries_QD: Floats, k: int) -> tuple[Floats, Ids]:
        count, width = len(self._rows_ND), min(k + SPARE, len(self._rows_ND))
        rough_Qw, rows_Qw = self._shortlist(queries_QD, width)
        scores_Qk, positions_Qk = best_first(self.scores(queries_QD, rows_Qw), rows_Qw, k)
        if width < count:
            # Twice the bound of what rounding can move a sum of D products of unit vectors by.
            doubt = np.float32(2 * queries_QD.shape[1] * np.finfo(np.float32).eps)
            for q in np.flatnonzero(rough_Qw[:, -1] + doubt >= scores_Qk[:, -1]):
                scores_Qk[q], positions_Qk[q] = (found[0] for found in self._scan(queries_QD[q : q + 1], k, None))
        return scores_Qk, positions_Qk

    def _shortlist(self, queries_QD: Floats, width: int) -> tuple[Floats, Ids]:
        """The best by matrix products, each thread multiplying its share of the rows: none waits for another."""
        bounds = self._shares(least=width)
        if len(bounds) == 2:
            rough_Qw, rows_Qw = self._index.search(queries_QD, width)
            return rough_Qw, rows_Qw

        def part(number: int) -> tuple[Floats, Ids]:
            faiss.omp_set_num_threads(1)  # for this thread of the pool alone
            rows_ND = self._rows_ND[bounds[number] : bounds[number + 1]]
            scores, positions = faiss.knn(queries_QD, rows_ND, width, metric=faiss.METRIC_INNER_PRODUCT)
            return scores, positions + bounds[number]

        parts = list(_threads().map(part, range(len(bounds) - 1)))
        return best_first(np.hstack([scores for scores, _ in parts]), np.hstack([rows for _, rows in parts]), width)

    def _shares(self, *, least: int) -> list[int]:
        """Where the share of each thread begins, and where the last one ends."""
        count = len(self._rows_ND)
        threads = max(1, min(faiss.omp_get_max_threads(), count // max(ROWS_PER_THREAD, least)))
        return [int(bound) for bound in np.linspace(0, count, threads + 1)]


def always_multiply() -> None:
    """Let FAISS compute every batch by a matrix product, from now on in this process.

    As shipped it does so only for calls with at least 128,000 numbers in their queries, never for a batch of 32. The
    switch is global to the process, so no search changes it back: whatever makes or searches an index here sets it
    before, and what must not be computed by a matrix product is scanned by ``FlatScan`` instead.
    """
    faiss.cvar.distance_compute_blas_threshold = 1


def best_first(scores_Qw: Floats, positions_Qw: Ids, k: int) -> tuple[Floats, Ids]:
    """The k best of each row by descending score, equal ones by ascending position; -1 and -inf come last."""
    last = np.where(positions_Qw < 0, np.iinfo(np.int64).max, positions_Qw)
    order = np.lexsort((last, -scores_Qw), axis=-1)[:, :k]
    return np.take_along_axis(scores_Qw, order, axis=1), np.take_along_axis(positions_Qw, order, axis=1)


def _cut(scores: Floats, positions: Ids, k: int) -> tuple[list[Floats], list[Ids], np.float32]:
    """The best k with all that equal the last of them, and its score."""
    least = np.float32(np.partition(scores, len(scores) - k)[len(scores) - k])
    good = scores >= least
    return [scores[good]], [positions[good]], least


def _threads() -> ThreadPoolExecutor:
    """The threads that scan shares of the rows, made when first needed."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="scan")
        return _pool
