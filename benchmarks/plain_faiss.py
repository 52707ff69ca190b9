"""FAISS as it comes, in a process where the indexer has changed FAISS's switch to matrix products.

``indexer.ann.flat.always_multiply`` sets ``faiss.cvar.distance_compute_blas_threshold`` of the whole process where an
index is made or searched, and with its value FAISS's own flat search of one query is several times slower. Whatever is
measured as "FAISS with defaults" must have the default.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

_ASK = "import faiss; print(faiss.cvar.distance_compute_blas_threshold)"


@cache
def shipped_threshold() -> int:
    """The switch of a fresh process that has imported nothing but FAISS."""
    done = subprocess.run([sys.executable, "-c", _ASK], stdout=subprocess.PIPE, check=True, text=True)
    return int(done.stdout)


def restore_defaults() -> None:
    """For a process that searches with FAISS alone: as if the indexer had never made an index."""
    import faiss

    faiss.cvar.distance_compute_blas_threshold = shipped_threshold()


class PlainIndex:
    """A FAISS index that is searched with the shipped switch, beside searches with the changed one; not in threads."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._threshold = shipped_threshold()

    def search(self, queries_QD: Any, k: int) -> tuple[Any, Any]:
        """What ``faiss.Index.search`` gives."""
        import faiss

        changed = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = self._threshold
        try:
            scores, rows = self._index.search(queries_QD, k)
        finally:
            faiss.cvar.distance_compute_blas_threshold = changed
        return scores, rows
