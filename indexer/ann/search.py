"""How each kind of FAISS index is searched so that a query's answer does not depend on the others of its batch.

A ``Searcher`` takes positions that may be answers, not ids, and gives positions. Three stand here: ``FlatSearcher``
(exact; see ``indexer.ann.flat``), ``IvfSearcher`` (the lists nearest to a query are found exactly, by the same scan)
and ``OneByOne`` for every other kind: FAISS computes coarse distances, transforms and look-up tables for a call as a
whole, with roundings that depend on its queries, so each query is a call of its own.

IVF indices also choose how many lists to search. A search looks at ``nprobe`` of them, and with a filter at more, in
the proportion in which fewer vectors may be answers. If those lists hold fewer allowed vectors than a search without a
filter would see, the allowed vectors are far from the query and list distances predict little: the search goes on, up
to all lists, until it has seen as many as usual, times the square of what was missing. (Measured with clusters and a
filter that keeps the furthest: the proportion alone finds at most 40 % where 98 % is found without a filter.)

Legend: Q queries, N vectors, L lists, p lists looked at, w neighbours wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from indexer.ann.flat import FlatScan, always_multiply, best_first

Floats = npt.NDArray[np.float32]

Ids = npt.NDArray[np.int64]

Bools = npt.NDArray[np.bool_]

NO_LIST = -1
"""What FAISS passes over."""

Nearest = Callable[[int], tuple[Floats, Ids]]
"""The scores of so many lists, nearest first, and the lists, each ``(Q, p)``."""


class Probes:
    """The lists of one IVF index, and which vector is in which: known once it is asked for, two bytes for each."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._known: tuple[npt.NDArray[np.unsignedinteger[Any]], Ids] | None = None

    def chosen(self, nearest: Nearest, keep_N: Bools | None) -> tuple[Floats, Ids]:
        """The lists to look at, as ``nearest`` gives them; a query that needs fewer than another has ``NO_LIST``."""
        lists, probes = int(self._index.nlist), int(self._index.nprobe)
        if keep_N is None:
            return nearest(min(probes, lists))
        all_L, kept_L = self._counts(keep_N)
        kept = int(kept_L.sum())
        least = min(int(np.ceil(probes * len(keep_N) / max(1, kept))), lists)
        looked_at = least
        while True:
            near_Qp, lists_Qp = nearest(looked_at)
            seen_Qp = np.cumsum(kept_L[lists_Qp], axis=1)
            usual_Q1 = all_L[lists_Qp[:, :probes]].sum(axis=1, keepdims=True)
            lacking_Q1 = np.maximum(usual_Q1 / np.maximum(seen_Qp[:, least - 1 : least], 1), 1)
            wanted_Q1 = np.minimum(usual_Q1 * lacking_Q1**2, kept)
            if looked_at == lists or (seen_Qp[:, -1:] >= wanted_Q1).all():
                break
            looked_at = min(2 * looked_at, lists)
        # Counted for each query by itself, so that none depends on how far the others of its batch have to look.
        before_Qp = seen_Qp - kept_L[lists_Qp]
        spare_Qp = (before_Qp >= wanted_Q1) & (np.arange(looked_at) >= least)
        return near_Qp, np.where(spare_Qp, NO_LIST, lists_Qp)

    def _counts(self, keep_N: Bools) -> tuple[Ids, Ids]:
        """``(L + 1,)``: how many vectors there are in each list, none in ``NO_LIST``; how many may be answers."""
        length = int(self._index.nlist) + 1
        if self._known is None:
            list_N = self._lists()
            self._known = list_N, np.bincount(list_N, minlength=length)
        list_N, all_L = self._known
        few = keep_N if 2 * np.count_nonzero(keep_N) < len(keep_N) else ~keep_N
        few_L = np.bincount(list_N[few], minlength=length)
        return all_L, few_L if few is keep_N else all_L - few_L

    def _lists(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        index, inverted = self._index, self._index.invlists
        list_N = np.zeros(int(index.ntotal), dtype=np.min_scalar_type(int(index.nlist)))
        for number in range(int(index.nlist)):
            size = int(inverted.list_size(number))
            if size:
                ids = inverted.get_ids(number)
                list_N[faiss.rev_swig_ptr(ids, size)] = number
                inverted.release_ids(number, ids)
        return list_N


SPARE_NEIGHBOURS = 1000
"""At most so many excluded vectors are made up for by looking at more nodes of a graph."""


class Restriction:
    """Which of N positions may be answers: ``kept`` of them."""

    def __init__(self, keep_N: Bools) -> None:
        self.keep_N = keep_N
        self.kept = int(np.count_nonzero(keep_N))
        self.selector = faiss.IDSelectorBitmap(np.packbits(keep_N, bitorder="little"))

    @property
    def excluded(self) -> int:
        """How many may not."""
        return len(self.keep_N) - self.kept


class Searcher(Protocol):
    """One kind of index, searched by position."""

    def search(self, queries_QD: Floats, width: int, only: Restriction | None) -> tuple[Floats, Ids]:
        """The ``width`` best of each query, best first; -1 where there are fewer."""
        ...


def searcher_of(index: Any) -> Searcher:
    """What searches a FAISS index."""
    index = faiss.downcast_index(index)
    if type(index) in (faiss.IndexFlat, faiss.IndexFlatIP):
        return FlatSearcher(index)
    if isinstance(index, faiss.IndexIVF) and not isinstance(index, faiss.IndexIVFFastScan):
        quantizer = faiss.downcast_index(index.quantizer)
        if type(quantizer) in (faiss.IndexFlat, faiss.IndexFlatIP) and index.metric_type == faiss.METRIC_INNER_PRODUCT:
            return IvfSearcher(index, quantizer)
    return OneByOne(index)


class FlatSearcher:
    """All vectors as they are."""

    def __init__(self, index: faiss.IndexFlat) -> None:
        self.scan = FlatScan(index)

    def search(self, queries_QD: Floats, width: int, only: Restriction | None) -> tuple[Floats, Ids]:
        """See ``Searcher``."""
        return self.scan.search(queries_QD, width, None if only is None else only.keep_N)


class IvfSearcher:
    """Inverted lists of any coding, behind centroids as they are."""

    def __init__(self, index: faiss.IndexIVF, quantizer: faiss.IndexFlat) -> None:
        self._index = index
        self._centroids = FlatScan(quantizer)
        self._probes = Probes(index)

    def search(self, queries_QD: Floats, width: int, only: Restriction | None) -> tuple[Floats, Ids]:
        """See ``Searcher``. Where few vectors may be answers, more lists are looked at (``indexer.ann.search``)."""
        index = self._index
        near_Qp, lists_Qp = self._probes.chosen(
            lambda probes: self._centroids.search(queries_QD, probes), None if only is None else only.keep_N
        )
        near_Qp, lists_Qp = np.ascontiguousarray(near_Qp), np.ascontiguousarray(lists_Qp)
        scores_Qw = np.empty((len(queries_QD), width), dtype=np.float32)
        found_Qw = np.empty((len(queries_QD), width), dtype=np.int64)
        parameters = faiss.SearchParametersIVF(
            sel=None if only is None else only.selector, nprobe=int(lists_Qp.shape[1])
        )
        arrays = (lists_Qp, near_Qp, scores_Qw, found_Qw)
        index.search_preassigned_c(
            len(queries_QD),
            faiss.swig_ptr(queries_QD),
            width,
            *(faiss.swig_ptr(array) for array in arrays),
            False,
            parameters,
        )
        return best_first(_without_holes(scores_Qw, found_Qw), found_Qw, width)


class OneByOne:
    """Any other kind: graphs, transforms, quantisers searched as a whole."""

    def __init__(self, index: Any) -> None:
        always_multiply()
        self._index = index
        self._ivf = faiss.try_extract_index_ivf(index)
        self._probes = None if self._ivf is None else Probes(self._ivf)

    def search(self, queries_QD: Floats, width: int, only: Restriction | None) -> tuple[Floats, Ids]:
        """See ``Searcher``."""
        found = [self._one(queries_QD[q : q + 1], width, only) for q in range(len(queries_QD))]
        scores_Qw = np.concatenate([scores for scores, _ in found])
        found_Qw = np.concatenate([positions for _, positions in found])
        return best_first(_without_holes(scores_Qw, found_Qw), found_Qw, width)

    def _one(self, query_1D: Floats, width: int, only: Restriction | None) -> tuple[Floats, Ids]:
        if only is None:
            scores, positions = self._index.search(query_1D, width)
            return scores, positions
        if isinstance(_innermost(self._index), faiss.IndexFastScan):
            return self._sifted(query_1D, width, only)
        breadth = width + min(only.excluded, SPARE_NEIGHBOURS)
        parameters = _parameters(self._index, only.selector, breadth, self._lists(query_1D, only))
        scores, positions = self._index.search(query_1D, width, params=parameters)
        return scores, positions

    def _lists(self, query_1D: Floats, only: Restriction) -> int:
        """How many inverted lists a query looks at, where there are any."""
        if self._probes is None:
            return 0
        rotated_1D = _transformed(self._index, query_1D)
        _, lists_1p = self._probes.chosen(lambda probes: self._ivf.quantizer.search(rotated_1D, probes), only.keep_N)
        return max(1, int(np.count_nonzero(lists_1p >= 0)))

    def _sifted(self, query_1D: Floats, width: int, only: Restriction) -> tuple[Floats, Ids]:
        """Ask a kind that knows no selector for more and more, until enough of it may be answers."""
        asked = width
        while True:
            asked = min(2 * asked, len(only.keep_N))
            scores, positions = self._index.search(query_1D, asked)
            positions = np.where((positions >= 0) & only.keep_N[positions], positions, -1)
            if asked == len(only.keep_N) or np.count_nonzero(positions >= 0) >= width:
                return best_first(_without_holes(scores, positions), positions, width)


def _without_holes(scores_Qw: Floats, found_Qw: Ids) -> Floats:
    """FAISS gives what it did not find the lowest finite number as a score."""
    return np.where(found_Qw < 0, np.float32(-np.inf), scores_Qw)


def _innermost(index: Any) -> Any:
    index = faiss.downcast_index(index)
    return _innermost(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _transformed(index: Any, query_1D: Floats) -> Floats:
    """A query as the inverted lists of an index see it."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        return _transformed(index.base_index, query_1D)
    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            query_1D = faiss.downcast_VectorTransform(index.chain.at(number)).apply(query_1D)
        return _transformed(index.index, query_1D)
    return query_1D


def _parameters(index: Any, selector: Any, breadth: int, lists: int) -> Any:
    """Search parameters of an index with a selector; ``breadth`` nodes of a graph, or ``lists``, are looked at."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector, breadth, lists))
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(index.base_index, selector, breadth, lists)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=lists)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=max(index.hnsw.efSearch, breadth))
    return faiss.SearchParameters(sel=selector)
