"""Embeddings of past text queries, the bank for hub bases that is nearest to the queries to come. Off by default.

In: the raw embeddings of searches that were computed. Out: ``query_log.npz`` in the store, which the next publication
takes as the bank of texts (``indexer.store.bank``). Kept are embeddings alone, the newest ``rows`` of them: no text, no
time, no client. An embedding can still give its text away to anyone who has the model, so the operator decides.

Legend: N queries, D channels.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from indexer.errors import Damaged
from indexer.store.bank import read_query_log, write_query_log

logger = logging.getLogger(__name__)

_WRITTEN_EVERY = 256  # queries; a killed service loses at most so many

Floats = NDArray[np.float32]


class QueryLog:
    """Keeps the newest ``rows`` embeddings of ``store``; with 0 rows, nothing. Safe for any number of threads."""

    def __init__(self, store: Path, rows: int) -> None:
        """Continue with what an earlier service kept; a damaged file is replaced."""
        self._store = store
        self._rows: deque[Floats] = deque(maxlen=rows)
        self._unwritten = 0
        self._lock = Lock()
        if rows:
            logger.info("embeddings of the last %d text queries are kept in %s (--query-log 0 stops it)", rows, store)
            try:
                earlier_ND = read_query_log(store)
            except Damaged as error:
                logger.warning("the log of queries starts over: %s", error)
                earlier_ND = None
            self._rows.extend(() if earlier_ND is None else earlier_ND)

    def add(self, rows: Iterable[Floats]) -> bool:
        """Keep raw embeddings (D,); whether so many are unwritten that ``write`` is due."""
        if not self._rows.maxlen:
            return False
        with self._lock:
            before = self._unwritten
            for row_D in rows:
                self._rows.append(np.array(row_D, np.float32))
                self._unwritten += 1
            return before < _WRITTEN_EVERY <= self._unwritten

    def write(self) -> None:
        """Bring what is kept to the disk, if anything is new. A failure is logged: searches go on."""
        with self._lock:
            if not self._unwritten:
                return
            rows_ND, self._unwritten = np.stack(self._rows), 0
        try:
            write_query_log(self._store, rows_ND)
        except OSError as error:
            logger.warning("the log of queries cannot be written: %s", error)
