"""Nearest neighbours by inner product. Nothing above the ``ann`` modules knows FAISS.

``VectorIndex`` is what the rest of the project sees: ids in, ids out. ``FaissIndex`` stands behind it on one machine;
a distributed engine would implement the same protocol.

Approximate indices hold codes, the vectors stay in the shards on the disk. With refinement a shortlist is scored again:
its rows are read through memory maps, multiplied with the frozen map and with the query. Scores are then exact cosines.

Legend: Q queries, N vectors, D channels, k neighbours, w width of a shortlist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np
import numpy.typing as npt

from indexer.ann import gpu
from indexer.ann.flat import best_first
from indexer.ann.recipe import CAGRA, IndexRecipe, make, set_options, split_options, train
from indexer.ann.search import FlatSearcher, OneByOne, Restriction, Searcher, searcher_of
from indexer.errors import Damaged

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


__all__ = ["NO_NEIGHBOUR", "Exclusion", "FaissIndex", "IndexRecipe", "VectorIndex", "build", "load", "make"]

FloatMatrix = npt.NDArray[np.float32]

IdMatrix = npt.NDArray[np.int64]

NO_NEIGHBOUR = -1
"""The id that fills a row when there are fewer than k vectors."""

FEW_ALLOWED = 4096
"""So few vectors that a filter leaves are all scored exactly, whatever the index: faster, and nothing is missed."""

FEW_GONE = 1000
"""So few vectors that are left out are asked for and dropped, instead of every vector being looked up."""


class Exclusion:
    """Positions that are never answers, made by ``FaissIndex.excluding`` for that index alone."""

    def __init__(self, positions: IdMatrix) -> None:
        self.positions = positions


class VectorIndex(Protocol):
    """A searchable set of vectors with 64-bit ids."""

    def __len__(self) -> int: ...

    def search(
        self,
        queries_QD: FloatMatrix,
        k: int,
        allowed_ids: IdMatrix | None = None,
        *,
        without: Exclusion | None = None,
    ) -> tuple[FloatMatrix, IdMatrix]:
        """The k best ids for each query, best first; see ``FaissIndex.search``."""
        ...


class FaissIndex:
    """A FAISS index over inner products, with ids of our own. Safe for concurrent searches.

    ``ids_N``, ascending, names the vectors in the order in which they were added; it is not copied. With ``refine`` the
    best are chosen from that many times as many by exact scores of ``rows`` (``indexer.ann.index``).
    """

    def __init__(self, index: Any, ids_N: IdMatrix, *, rows: Rows | None = None, refine: float = 0.0) -> None:
        assert len(ids_N) == index.ntotal, f"{len(ids_N)} ids for {index.ntotal} vectors"
        self._index = index
        self._ids_N = ids_N
        self._searcher: Searcher = searcher_of(index)
        self._rows = rows
        self._refine = refine if rows is not None else 0.0

    def __len__(self) -> int:
        return len(self._ids_N)

    @property
    def dim(self) -> int:
        """Channels of a vector."""
        return int(self._index.d)

    @property
    def ids(self) -> IdMatrix:
        """``(N,)`` ids, ascending."""
        return self._ids_N

    @property
    def inner(self) -> Any:
        """The FAISS index itself, searched by position."""
        return self._index

    def searched_by(self, searcher: Searcher, *, least_refine: float) -> Self:
        """The same vectors, searched by something else, such as a GPU, with at least so much refinement."""
        refine = max(self._refine, least_refine)
        other = type(self)(self._index, self._ids_N, rows=self._rows, refine=refine)
        other._searcher = searcher
        return other

    def configure(self, options: str) -> None:
        """Search with other options from now on, saved with the index as far as they are FAISS's own."""
        theirs, refine = split_options(options)
        set_options(self._index, type(self._index).__name__, theirs)
        self._refine = refine if self._rows is not None else 0.0

    def excluding(self, ids: IdMatrix) -> Exclusion | None:
        """What ``search`` takes as ``without``; None if the index holds none of these ids."""
        positions = self._positions(ids)
        return Exclusion(positions) if len(positions) else None

    def search(
        self,
        queries_QD: FloatMatrix,
        k: int,
        allowed_ids: IdMatrix | None = None,
        *,
        without: Exclusion | None = None,
    ) -> tuple[FloatMatrix, IdMatrix]:
        """The ``k`` best ids for each query by inner product.

        ``allowed_ids`` restricts the answer to those ids (unknown ones are ignored), ``without`` leaves some out; the
        others move up, so that there are k answers wherever there are k vectors. Returns scores ``(Q, k)``
        float32 in descending order and ids ``(Q, k)``; where there are fewer than k vectors the id is -1 and the
        score -inf. Equal scores are ordered by id. Raises ``ValueError`` for queries of the wrong shape.
        """
        _check_queries(queries_QD, self.dim, k)
        scores_Qk = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
        ids_Qk = np.full((len(queries_QD), k), NO_NEIGHBOUR, dtype=np.int64)
        width = min(k, len(self))
        if width == 0 or len(queries_QD) == 0:
            return scores_Qk, ids_Qk
        queries_QD = np.ascontiguousarray(queries_QD, dtype=np.float32)
        gone = np.zeros(0, dtype=np.int64) if without is None else without.positions
        if allowed_ids is None:
            scores, positions = self._unfiltered(queries_QD, width, gone)
        else:
            scores, positions = self._filtered(queries_QD, width, np.setdiff1d(self._positions(allowed_ids), gone))
        held = min(width, scores.shape[1])
        missing = positions[:, :held] < 0
        scores_Qk[:, :held] = np.where(missing, np.float32(-np.inf), scores[:, :held])
        ids_Qk[:, :held] = np.where(missing, NO_NEIGHBOUR, self._ids_N[positions[:, :held]])
        return scores_Qk, ids_Qk

    def shortlist(self, queries_QD: FloatMatrix, width: int) -> IdMatrix:
        """Positions ``(Q, width)`` as the index itself orders them, before any refinement."""
        return self._searcher.search(np.ascontiguousarray(queries_QD), min(width, len(self)), None)[1]

    def save(self, path: Path) -> None:
        """Write the index, without the ids, to a file."""
        faiss.write_index(self._index, str(path))

    def _unfiltered(self, queries_QD: FloatMatrix, width: int, gone: IdMatrix) -> tuple[FloatMatrix, IdMatrix]:
        if len(gone) and (len(gone) > FEW_GONE or isinstance(self._searcher, OneByOne)):
            keep_N = np.ones(len(self), dtype=bool)
            keep_N[gone] = False
            return self._found(queries_QD, width, Restriction(keep_N))
        scores, positions = self._found(queries_QD, min(width + len(gone), len(self)), None)
        if len(gone):
            positions = np.where(np.isin(positions, gone), NO_NEIGHBOUR, positions)
            scores = np.where(positions < 0, np.float32(-np.inf), scores)
            scores, positions = best_first(scores, positions, width)
        return scores, positions

    def _filtered(self, queries_QD: FloatMatrix, width: int, allowed: IdMatrix) -> tuple[FloatMatrix, IdMatrix]:
        if len(allowed) == 0:
            return self._nothing(len(queries_QD))
        exact = isinstance(self._searcher, FlatSearcher) or self._rows is not None
        if exact and len(allowed) <= FEW_ALLOWED:
            positions_Qw = np.tile(allowed, (len(queries_QD), 1))
            return best_first(self._scores(queries_QD, positions_Qw), positions_Qw, width)
        keep_N = np.zeros(len(self), dtype=bool)
        keep_N[allowed] = True
        return self._found(queries_QD, width, Restriction(keep_N))

    @staticmethod
    def _nothing(queries: int) -> tuple[FloatMatrix, IdMatrix]:
        return np.zeros((queries, 0), dtype=np.float32), np.zeros((queries, 0), dtype=np.int64)

    def _found(self, queries_QD: FloatMatrix, width: int, only: Restriction | None) -> tuple[FloatMatrix, IdMatrix]:
        if not self._refine:
            return self._searcher.search(queries_QD, width, only)
        wide = min(int(np.ceil(width * self._refine)), len(self))
        _, positions_Qw = self._searcher.search(queries_QD, wide, only)
        return best_first(self._scores(queries_QD, positions_Qw), positions_Qw, width)

    def _scores(self, queries_QD: FloatMatrix, positions_Qw: IdMatrix) -> FloatMatrix:
        if isinstance(self._searcher, FlatSearcher):
            return self._searcher.scan.scores(queries_QD, positions_Qw)
        assert self._rows is not None, "only what can be scored exactly is refined"
        return exact_scores(self._rows, queries_QD, positions_Qw)

    def _positions(self, ids: IdMatrix) -> IdMatrix:
        """Positions, ascending, of those ids that there are."""
        wanted = np.unique(np.asarray(ids, dtype=np.int64))
        found = np.searchsorted(self._ids_N, wanted)
        known = found < len(self)
        known[known] = self._ids_N[found[known]] == wanted[known]
        return found[known].astype(np.int64)


def build(
    recipe: IndexRecipe,
    dim: int,
    ids_N: IdMatrix,
    blocks: Iterable[FloatMatrix],
    *,
    train_rows: FloatMatrix,
    rows: Rows | None = None,
) -> FaissIndex:
    """Build an index from blocks of rows that together match ``ids_N``, ascending, in order.

    An index that needs training learns from ``train_rows`` ``(T, dim)``; ``rows`` are for refinement. Raises
    ``IndexFactoryError`` if the recipe is unknown or if there are too few rows to train on.
    """
    assert (np.diff(ids_N) > 0).all(), "ids must ascend"
    if recipe.factory == CAGRA:
        index = gpu.build_cagra(dim, blocks)
        set_options(index, recipe.factory, split_options(recipe.options)[0])
    else:
        index = make(recipe, dim)
        if not index.is_trained:
            train(index, recipe.factory, train_rows)
        for block in blocks:
            index.add(np.ascontiguousarray(block, dtype=np.float32))
    assert index.ntotal == len(ids_N), f"{index.ntotal} rows for {len(ids_N)} ids"
    return FaissIndex(index, ids_N, rows=rows, refine=split_options(recipe.options)[1])


def load(
    path: Path, ids_N: IdMatrix, *, rows: Rows | None = None, refine: float = 0.0, mmap: bool = False
) -> FaissIndex:
    """Read an index that ``FaissIndex.save`` wrote, or one of store format 1, which holds its ids too.

    With ``mmap`` the vectors or codes stay in the file, and are read as searches need them; kinds that FAISS cannot map
    are read, and so are files of format 1, until the next publication. Raises ``Damaged`` if FAISS cannot read it, or
    if it does not hold ``ids_N``.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        if isinstance(index, faiss.IndexIDMap):
            index = _without_ids(faiss.read_index(str(path)), path, ids_N)
    except RuntimeError as error:
        raise Damaged(f"{path} cannot be read by FAISS ({error}); run `emcl index rebuild`") from error
    if index.ntotal != len(ids_N):
        raise Damaged(f"{path} holds {index.ntotal} vectors for {len(ids_N)} ids; run `emcl index rebuild`")
    return FaissIndex(index, ids_N, rows=rows, refine=refine)


def _without_ids(index: faiss.IndexIDMap, path: Path, ids_N: IdMatrix) -> Any:
    """What an index of format 1 holds under its map of ids. Raises ``Damaged`` if those are not ``ids_N``."""
    if not np.array_equal(faiss.vector_to_array(index.id_map), ids_N):
        raise Damaged(f"{path} holds other ids than the files beside it; run `emcl index rebuild`")
    inner = faiss.downcast_index(index.index)
    inner.referenced_objects = [index]  # which owns it; as FAISS itself ties one object's life to another's
    return inner


def set_threads(count: int) -> None:
    """How many threads one search may use, for the thread that calls."""
    faiss.omp_set_num_threads(count)


def _check_queries(queries_QD: FloatMatrix, dim: int, k: int) -> None:
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dim:
        raise ValueError(f"queries have shape {queries_QD.shape}, the index expects (queries, {dim})")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
