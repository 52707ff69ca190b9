"""The vectors of one index, all captions or all segments: where the raw rows are, and in which order they are added.

Legend: N rows, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from indexer.store.shards import ShardReader

if TYPE_CHECKING:
    from model.config import PoolingConfig
    from model.emcl.correction import Correction, CorrectionSettings
    from model.emcl.correction import Side as SideName
    from model.emcl.em import FrozenMap

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

BLOCK_ROWS = 16_384
"""Rows mapped and added to FAISS at once: 32 MB at 512 channels."""


class RowMapper(Protocol):
    """The part of ``model.encoder.Encoder`` that publishing needs."""

    def fit_frozen_map(self, rows_ND: npt.NDArray[Any], /) -> FrozenMap:
        """Fit the frozen EMCL map on raw rows."""
        ...

    @property
    def pooling(self) -> PoolingConfig:
        """How the model pools frames, which the numbers of hubs in the rerank depend on."""
        ...

    @property
    def calibrated(self) -> CorrectionSettings | None:
        """What `emcl calibrate` chose for the model's hub and paired bases, if it did."""
        ...


@dataclass(frozen=True)
class Side:
    """Raw rows by position; ``ids_N`` ascend."""

    ids_N: Ids
    shards_N: npt.NDArray[np.int32]
    rows_N: Ids
    reader: ShardReader

    def __len__(self) -> int:
        return len(self.ids_N)

    def raw(self, which: Ids | slice) -> Floats:
        """Rows before the frozen map."""
        return self.reader.gather(self.shards_N[which], self.rows_N[which]).astype(np.float32, copy=False)

    def sample(self, count: int) -> Ids:
        """Positions of ``count`` rows, ascending, spread evenly by a fixed permutation of the ids."""
        if count >= len(self):
            return np.arange(len(self))
        # Fibonacci hashing scatters consecutive ids, so that neighbours (one video's segments) are not taken together.
        keys = self.ids_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return np.sort(np.argpartition(keys, count)[:count])


@dataclass(frozen=True)
class MappedSide:
    """The rows of a side as the index compares them: corrected, all of one norm."""

    side: Side
    correction: Correction
    name: SideName

    def __len__(self) -> int:
        return len(self.side)

    @property
    def dim(self) -> int:
        """M: coordinates of a row."""
        return self.correction.width(self.name, self.side.reader.dim)

    def rows(self, which: Ids | slice) -> Floats:
        """Rows at some positions."""
        return self.correction.items(self.side.raw(which), self.name)

    def raw_sample(self, count: int) -> Floats:
        """``count`` raw rows, or all, spread evenly."""
        return self.side.raw(self.side.sample(count))

    def asked_by(self, raw_QD: Floats, name: SideName) -> Floats:
        """Raw rows of the side ``name`` as queries of this one."""
        return self.correction.queries(raw_QD, "text" if name == "captions" else "video", self.name)

    def blocks(self) -> Iterator[Floats]:
        """All rows, in the order of their ids."""
        for start in range(0, len(self), BLOCK_ROWS):
            yield self.rows(slice(start, start + BLOCK_ROWS))
            self.side.reader.let_go()

    def sample(self, count: int) -> Floats:
        """``count`` rows, or all, spread evenly."""
        positions = self.side.sample(count)
        out_ND = np.empty((len(positions), self.dim), dtype=np.float32)
        for start in range(0, len(positions), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            out_ND[part] = self.rows(positions[part])
            self.side.reader.let_go()
        return out_ND
