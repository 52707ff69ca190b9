"""One kind of vector in two layers: those of the generation, and those of the overlay over it.

In: ids, where their rows are, a FAISS index over them; what is gone, and what is new. Out: answers as of one index that
holds exactly what is there now. The new vectors are mapped by the generation's frozen map and searched exactly.

Legend: Q queries, N vectors, D channels, k neighbours.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from indexer.ann import index as ann
from indexer.store.shards import ShardReader

if TYPE_CHECKING:
    from model.emcl.correction import Correction, Side

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.void]


class _Exact:
    """The recipe of the overlay's index."""

    factory = "Flat"
    options = ""


class LayerIndex(Protocol):
    """The index of a generation: ``indexer.ann.index.FaissIndex``, or what stands in its place."""

    @property
    def ids(self) -> Ids:
        """``(N,)`` ids, ascending."""
        ...

    def excluding(self, ids: Ids, /) -> ann.Exclusion | None:
        """What ``search`` takes as ``without``."""
        ...

    def search(
        self, queries_QD: Floats, k: int, allowed_ids: Ids | None = None, *, without: ann.Exclusion | None = None
    ) -> tuple[Floats, Ids]:
        """See ``FaissIndex.search``."""
        ...


class Layers:
    """Segments or captions, named ``what``. Immutable; safe from any number of threads."""

    def __init__(self, what: str, places_N: Places, index: LayerIndex) -> None:
        """The generation alone: ``places_N`` in ascending order of id."""
        self.what = what
        self._places_N = places_N
        self._ids_N: Ids = index.ids
        self._index = index
        self._new_places: Places = np.zeros(0, dtype=places_N.dtype)
        self._new_ids: Ids = np.zeros(0, dtype=np.int64)
        self._new_index: ann.FaissIndex | None = None
        self._gone: Ids = np.zeros(0, dtype=np.int64)
        self._without: ann.Exclusion | None = None

    def under(self, new_places: Places, new_rows_ND: Floats, gone: Ids) -> Layers:
        """The same generation with other layers over it; ``new_rows_ND`` are corrected as the index's are."""
        layers = copy(self)  # shares what belongs to the generation
        layers.__dict__.pop("ids", None)
        layers._new_places, layers._gone = new_places, gone
        layers._new_ids = np.ascontiguousarray(new_places["id"])
        layers._without = self._index.excluding(gone) if len(gone) else None
        layers._new_index = None
        if len(new_places):
            layers._new_index = ann.build(
                _Exact(), new_rows_ND.shape[1], layers._new_ids, [new_rows_ND], train_rows=new_rows_ND[:0]
            )
        return layers

    def __len__(self) -> int:
        return len(self._ids_N) - len(self._gone) + len(self._new_ids)

    @cached_property
    def ids(self) -> Ids:
        """``(N,)`` ids of everything that is there, ascending."""
        if not len(self._gone) and not len(self._new_ids):
            return self._ids_N
        return np.union1d(np.setdiff1d(self._ids_N, self._gone, assume_unique=True), self._new_ids)

    def search(self, queries_QD: Floats, k: int, allowed_ids: Ids | None) -> tuple[Floats, Ids]:
        """The k nearest of both layers; see ``FaissIndex.search``."""
        scores_Qk, ids_Qk = self._index.search(queries_QD, k, allowed_ids, without=self._without)
        if self._new_index is None:
            return scores_Qk, ids_Qk
        new_scores_Qk, new_ids_Qk = self._new_index.search(queries_QD, k, allowed_ids)
        scores, ids = np.hstack([scores_Qk, new_scores_Qk]), np.hstack([ids_Qk, new_ids_Qk])
        best = np.lexsort((ids, -scores), axis=-1)[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)

    def places(self, ids: Ids) -> tuple[Places, Bools]:
        """Records of ``ids``, flattened, and which of them are there; -1 gives a record of zeros.

        Raises ``KeyError`` for any other id that is not there.
        """
        flat = np.asarray(ids, dtype=np.int64).ravel()
        present: Bools = flat != ann.NO_NEIGHBOUR
        records = np.zeros(len(flat), dtype=self._places_N.dtype)
        found = np.zeros(len(flat), dtype=bool)
        for table, table_ids in ((self._places_N, self._ids_N), (self._new_places, self._new_ids)):
            position = np.searchsorted(table_ids, flat)
            here = position < len(table_ids)
            here[here] = table_ids[position[here]] == flat[here]
            records[here] = table[position[here]]
            found |= here
        if len(self._gone):
            found &= ~np.isin(flat, self._gone)
        if not np.array_equal(found, present):
            raise KeyError(f"this generation has no {self.what} {flat[found != present][0]}")
        return records, present


def mapped(
    correction: Correction, side: Side, reader: ShardReader, shards_N: npt.NDArray[np.int32], rows_N: Ids
) -> Floats:
    """Rows of a shard as the index of ``side`` compares them."""
    return correction.items(reader.gather(shards_N, rows_N).astype(np.float32), side)
