"""QB-Norm of one query's candidates: scores against the store's query bank, whose statistics are fixed.

In: candidates with scores of one kind. Out: the same, re-scored where the best candidate is a hub of the bank
(``model.evaluate.hubness.BankNorm``). Dual softmax has no place here: its statistics are those of all queries to be
ranked, and a service sees one at a time.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from indexer.errors import Damaged
from indexer.store.query_bank import QUERY_BANK, StoredBank, read_bank, scoring_of
from service.errors import Conflict
from service.search.ranking import Scored
from service.search.values import Rerank

if TYPE_CHECKING:
    from indexer.library import Library
    from model.encoder import Encoder

_MAKE_ONE = "compute one with `emcl index bank --captions FILE`, reload the index, or leave `normalise` out"


class BankCache:
    """The query banks of stores on disk; a bank is read again only when its file was replaced."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[Path, tuple[tuple[int, int, int], StoredBank | Damaged]] = {}

    def bank_of(self, store: Path) -> StoredBank | Damaged | None:
        """The bank, or None if there is none; a damaged one is returned as its error: the index opens all the same."""
        with self._lock:
            try:
                found = (store / QUERY_BANK).stat()
            except FileNotFoundError:
                self._kept.pop(store, None)
                return None
            signature = (found.st_mtime_ns, found.st_size, found.st_ino)
            if store not in self._kept or self._kept[store][0] != signature:
                self._kept[store] = (signature, _read(store))
            return self._kept[store][1]


def _read(store: Path) -> StoredBank | Damaged:
    try:
        bank = read_bank(store)
    except Damaged as error:
        return error
    return bank or Damaged(f"{store / QUERY_BANK} was removed while it was being opened")


def bank_name(bank: StoredBank | Damaged | None) -> str:
    """What a bank adds to the version of what a search can answer."""
    return f"+bank-{bank.digest[:12]}" if isinstance(bank, StoredBank) else ""


def usable(bank: StoredBank | Damaged | None, reader: Library, encoder: Encoder) -> StoredBank:
    """Return the bank of a view of the index. Raises ``Conflict`` if there is none, or one of another model."""
    if bank is None:
        raise Conflict("the served index has no query bank", expected="one for qb-norm", next_step=_MAKE_ONE)
    if isinstance(bank, Damaged):
        raise Conflict(f"the query bank cannot be used: {bank}", expected="an intact one", next_step=_MAKE_ONE)
    if bank.fingerprint != reader.manifest.fingerprint or bank.scoring != scoring_of(encoder.config, reader.correction):
        raise Conflict(
            f"the query bank is of checkpoint {bank.fingerprint[:12]}, or of other settings of its EMCL or pooling",
            expected=f"one of checkpoint {encoder.fingerprint[:12]} as it is configured now",
            next_step=_MAKE_ONE,
        )
    return bank


def rescore(scored: Scored, bank: StoredBank, kind: Rerank) -> Scored:
    """Re-score candidates whose scores are of ``kind``; queries whose best candidate is not a hub keep theirs."""
    scores_QC = np.array(scored.scores_QC)
    for q, ids_C in enumerate(scored.candidates.ids_QC):
        if (ids_C >= 0).any():
            norm = bank.for_candidates(kind, ids_C)
            scores_QC[q] = norm.rescore(scores_QC[q : q + 1])[0].astype(scores_QC.dtype)
    return replace(scored, scores_QC=scores_QC)
