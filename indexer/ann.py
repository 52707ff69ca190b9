"""Nearest neighbours by inner product. The only module that imports FAISS.

``VectorIndex`` is what the rest of the project sees: ids in, ids out. ``FaissIndex`` stands behind it on one machine;
a distributed engine would implement the same protocol.

Legend: Q queries, N vectors, D channels, k neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged, IndexFactoryError

FloatMatrix = npt.NDArray[np.float32]
IdMatrix = npt.NDArray[np.int64]

NO_NEIGHBOUR = -1
"""The id that fills a row when there are fewer than k vectors."""

QUERY_BLOCK = 16
"""Queries are handed to FAISS in blocks below its switch to matrix products (20 queries in older versions): the score
of a query may not depend, even in its last bit, on how many others arrive with it."""

SPARE_NEIGHBOURS = 1000
"""At most so many excluded vectors are made up for by looking at more nodes of a graph."""

TRAINING_ROWS_PER_CENTROID = 39
"""FAISS's own least number of training points for each centroid of a k-means."""


class IndexRecipe(Protocol):
    """What kind of index to build (``indexer.config.StoreSettings`` is one).

    ``factory`` is a FAISS factory string: ``Flat`` (exact), ``HNSW32``, ``IVF256,Flat``, ``IVF1024,PQ64`` …;
    ``options`` are FAISS search parameters (``nprobe=32``, ``efSearch=64``), saved inside the index.
    """

    @property
    def factory(self) -> str:
        """The factory string."""
        ...

    @property
    def options(self) -> str:
        """Search parameters, empty for FAISS's own defaults."""
        ...


class Exclusion:
    """Ids that are never answers, made by ``FaissIndex.excluding`` for that index alone."""

    def __init__(self, kept_N: npt.NDArray[np.bool_]) -> None:
        self.kept_N = kept_N
        self.count = int(len(kept_N) - np.count_nonzero(kept_N))


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
    """A FAISS index over inner products, with ids of our own (``IDMap2``). Safe for concurrent searches."""

    def __init__(self, index: faiss.IndexIDMap2) -> None:
        self._index = index
        self._ids_N: IdMatrix = faiss.vector_to_array(index.id_map).astype(np.int64)
        self._positions_by_id = np.argsort(self._ids_N, kind="stable")
        self._sorted_ids_N = self._ids_N[self._positions_by_id]
        # A linear transform (PCA, OPQ) is one matrix product over the queries, whose rounding depends on their number.
        transformed = isinstance(faiss.downcast_index(index.index), faiss.IndexPreTransform)
        self._block = 1 if transformed else QUERY_BLOCK

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """Channels of a vector."""
        return int(self._index.d)

    @property
    def ids(self) -> IdMatrix:
        """``(N,)`` ids in the order in which they were added."""
        return self._ids_N

    def excluding(self, ids: IdMatrix) -> Exclusion | None:
        """What ``search`` takes as ``without``; None if the index holds none of these ids."""
        kept_N = ~self._membership(ids)
        return None if kept_N.all() else Exclusion(kept_N)

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
        parameters = self._restriction(allowed_ids, without, width)
        inner = self._index.index
        for start in range(0, len(queries_QD), self._block):
            block = slice(start, start + self._block)
            queries = np.ascontiguousarray(queries_QD[block], dtype=np.float32)
            scores, positions = inner.search(queries, width, params=parameters)
            scores_Qk[block, :width], ids_Qk[block, :width] = self._named(scores, positions)
        return scores_Qk, ids_Qk

    def save(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self._index, str(path))

    def _named(self, scores: FloatMatrix, positions: IdMatrix) -> tuple[FloatMatrix, IdMatrix]:
        missing = positions < 0
        ids = np.where(missing, NO_NEIGHBOUR, self._ids_N[positions])
        scores = np.where(missing, np.float32(-np.inf), scores)
        order = np.lexsort((ids, -scores), axis=-1)
        return np.take_along_axis(scores, order, axis=-1), np.take_along_axis(ids, order, axis=-1)

    def _membership(self, ids: IdMatrix) -> npt.NDArray[np.bool_]:
        wanted = np.unique(np.asarray(ids, dtype=np.int64))
        found = np.searchsorted(self._sorted_ids_N, wanted)
        known = found < len(self)
        known[known] = self._sorted_ids_N[found[known]] == wanted[known]
        member_N = np.zeros(len(self), dtype=bool)
        member_N[self._positions_by_id[found[known]]] = True
        return member_N

    def _restriction(self, allowed_ids: IdMatrix | None, without: Exclusion | None, width: int) -> Any:
        if allowed_ids is None and without is None:
            return None
        keep_N = np.ones(len(self), dtype=bool) if allowed_ids is None else self._membership(allowed_ids)
        spare = 0
        if without is not None:
            keep_N = keep_N & without.kept_N
            spare = min(without.count, SPARE_NEIGHBOURS)
        selector = faiss.IDSelectorBitmap(np.packbits(keep_N, bitorder="little"))
        return _parameters(self._index.index, selector, width + spare if spare else 0)


def build(
    recipe: IndexRecipe, dim: int, ids_N: IdMatrix, blocks: Iterable[FloatMatrix], *, train_rows: FloatMatrix
) -> FaissIndex:
    """Build an index from blocks of rows that together match ``ids_N`` in order.

    An index that needs training learns from ``train_rows`` ``(T, dim)``. Raises ``IndexFactoryError`` if the recipe
    is unknown or if there are too few rows to train on.
    """
    inner = make(recipe, dim)
    if not inner.is_trained:
        _train(inner, recipe.factory, train_rows)
    index = faiss.IndexIDMap2(inner)
    start = 0
    for block in blocks:
        index.add_with_ids(np.ascontiguousarray(block, dtype=np.float32), ids_N[start : start + len(block)])
        start += len(block)
    assert start == len(ids_N), f"{start} rows for {len(ids_N)} ids"
    return FaissIndex(index)


def load(path: Path) -> FaissIndex:
    """Read an index that ``FaissIndex.save`` wrote. Raises ``Damaged`` if FAISS cannot read it."""
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise Damaged(f"{path} cannot be read by FAISS ({error}); run `emcl index rebuild`") from error
    if not isinstance(index, faiss.IndexIDMap2):
        raise Damaged(f"{path} holds a {type(index).__name__}, expected IndexIDMap2; run `emcl index rebuild`")
    return FaissIndex(index)


def set_threads(count: int) -> None:
    """How many threads one search may use, in this process."""
    faiss.omp_set_num_threads(count)


def make(recipe: IndexRecipe, dim: int) -> Any:
    """An empty FAISS index. Raises ``IndexFactoryError`` if FAISS does not know the recipe for ``dim`` channels."""
    try:
        index = faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexFactoryError(
            f"FAISS cannot make an index {recipe.factory!r} for {dim} channels ({_reason(error)}); "
            "examples: Flat, HNSW32, 'IVF256,Flat', 'IVF1024,PQ64'"
        ) from error
    try:
        if recipe.options:
            faiss.ParameterSpace().set_index_parameters(index, recipe.options)
    except RuntimeError as error:
        raise IndexFactoryError(
            f"FAISS index {recipe.factory!r} does not take the search options {recipe.options!r} "
            f"({_reason(error)}); examples: nprobe=32, efSearch=64"
        ) from error
    return index


def _reason(error: RuntimeError) -> str:
    """FAISS's own words without the C++ source line that it puts before them."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error).strip(), flags=re.DOTALL).removeprefix("Error: ")


def _train(inner: Any, factory: str, train_rows: FloatMatrix) -> None:
    lists = getattr(faiss.extract_index_ivf(inner), "nlist", 1) if "IVF" in factory else 1
    needed = lists * TRAINING_ROWS_PER_CENTROID
    if len(train_rows) < needed:
        raise IndexFactoryError(
            f"the index {factory!r} trains on at least {needed} vectors ({lists} lists), the store has "
            f"{len(train_rows)}; use fewer lists, or the exact index: `emcl index rebuild --index Flat`"
        )
    try:
        inner.train(np.ascontiguousarray(train_rows, dtype=np.float32))
    except RuntimeError as error:
        raise IndexFactoryError(
            f"the index {factory!r} could not be trained on {len(train_rows)} vectors "
            f"({_reason(error)}); use the exact index: `emcl index rebuild --index Flat`"
        ) from error


def _parameters(index: Any, selector: Any, breadth: int) -> Any:
    """Search parameters of an index with a selector; a graph looks at ``breadth`` nodes at least."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector, breadth))
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(index.base_index, selector, breadth)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=max(index.hnsw.efSearch, breadth))
    return faiss.SearchParameters(sel=selector)


def _check_queries(queries_QD: FloatMatrix, dim: int, k: int) -> None:
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dim:
        raise ValueError(f"queries have shape {queries_QD.shape}, the index expects (queries, {dim})")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
