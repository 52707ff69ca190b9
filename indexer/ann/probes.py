"""How many inverted lists a search looks at: more of them where few vectors may be answers.

A search looks at ``nprobe`` of the lists, so at a share of the vectors. With a filter it looks at more lists in the
proportion in which fewer vectors may be answers. If these hold fewer of them than it usually sees of all, what may be
an answer lies elsewhere than what is near, and near lists say little of where the best of it is: then it goes on, up to
all lists, until it has seen as many as usual, times the square of what was lacking.

Measured with clusters and a filter that leaves what is furthest: with the proportion alone at most 40 % is found where
98 % is found without a filter.

Legend: Q queries, N vectors, L lists, p lists looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NO_LIST = -1
"""What FAISS passes over."""

Nearest = Callable[[int], tuple[Floats, Ids]]
"""The scores of so many lists, nearest first, and the lists, each ``(Q, p)``."""


class Probes:
    """The lists of one IVF index, and which vector lies in which: known once it is asked for, two bytes for each."""

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
