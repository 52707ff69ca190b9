"""How the indexes of a generation are held for searching: in memory or mapped, on the CPU or on graphics cards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from indexer.ann import gpu
from indexer.ann import index as ann
from indexer.ann.recipe import split_options
from indexer.ann.refine import Rows
from indexer.store.config import IndexReport

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """``mmap``: leave vectors and codes in the files (``auto``: those that are more than the memory that an index may
    take). ``device``: see ``indexer.ann.gpu.on_device``."""

    mmap: Literal["auto", "on", "off"] = "auto"
    device: gpu.Device = "cpu"

    def open(self, path: Path, ids_N: Ids, rows: Rows, report: IndexReport | None) -> ann.FaissIndex:
        """The index in ``path``; ``report`` is what the manifest says of it. Raises ``Damaged`` or ``StoreError``."""
        mapped = self.mmap == "on" or (self.mmap == "auto" and report is not None and report.mapped)
        refine = 0.0 if report is None else split_options(report.options)[1]
        index = ann.load(path, ids_N, rows=rows, refine=refine, mmap=mapped)
        return gpu.on_device(index, self.device)
