"""What a store knows about queries: the banks that hub bases are fitted on, and calibrated settings.

``bank.npz`` holds the raw embeddings of texts like the queries to come (`emcl index bank`), ``query_log.npz`` those of
past queries (``--query-log``), ``correction.npz`` the settings and paired bases of `emcl calibrate` or `emcl index
bases`. Each is one file beside the generations, replaced as a whole and checked by its digest; the next publication
uses them. Without the first two a store's own captions are the bank, if there are enough; videos are the bank for
captions.

Legend: N rows, D channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged
from indexer.store.vectors import Side
from model.durable import load_arrays, save_arrays

if TYPE_CHECKING:
    from model.emcl.correction import CorrectionSettings
    from model.emcl.correction import Side as SideName

Floats = npt.NDArray[np.float32]

BANK, QUERY_LOG, CORRECTION = "bank.npz", "query_log.npz", "correction.npz"

BANK_ROWS = 5000
"""Most rows that hub bases are fitted on: 3 seconds at 512 channels on one core."""


def write_bank_texts(store: Path, rows_ND: Floats, source: str) -> None:
    """Keep the raw embeddings of a bank's texts; ``source`` is their count and origin in words."""
    save_arrays(store / BANK, {"rows": rows_ND.astype(np.float32), "source": np.array(source)})


def write_query_log(store: Path, rows_ND: Floats) -> None:
    """Keep the raw embeddings of past queries."""
    save_arrays(store / QUERY_LOG, {"rows": rows_ND.astype(np.float16)})


def read_query_log(store: Path) -> Floats | None:
    """Raw embeddings of past queries (N, D), None if none are kept. Raises ``Damaged``."""
    arrays = _read(store / QUERY_LOG, "delete it; the log of queries starts over")
    return None if arrays is None else arrays["rows"].astype(np.float32)


def write_settings(store: Path, settings: CorrectionSettings) -> None:
    """Keep what was calibrated for the store."""
    save_arrays(store / CORRECTION, settings.to_arrays())


def read_settings(store: Path) -> CorrectionSettings | None:
    """What was calibrated for the store, None if nothing was. Raises ``Damaged``."""
    arrays = _read(store / CORRECTION, "run `emcl index bases` or `emcl calibrate --store` again, or delete it")
    if arrays is None:
        return None
    from model.emcl.correction import CorrectionSettings

    return CorrectionSettings.from_arrays(arrays)


def banks_of(store: Path, videos: Side, captions: Side) -> dict[SideName, tuple[Floats, str]]:
    """The rows that hub bases of each side's items are fitted on, raw, with their count and origin in words.

    For videos: the texts of `emcl index bank`, else past queries, else the store's own captions, the latter two where
    there are at least 200; for captions the store's own segments, where there are as many.
    """
    from model.emcl.hub import FEWEST_QUERIES

    banks: dict[SideName, tuple[Floats, str]] = {}
    given = _read(store / BANK, "run `emcl index bank` again, or delete it")
    log_ND = read_query_log(store)
    if given is not None:
        banks["videos"] = given["rows"].astype(np.float32), str(given["source"])
    elif log_ND is not None and len(log_ND) >= FEWEST_QUERIES:
        banks["videos"] = log_ND, f"{len(log_ND):,} past queries"
    elif len(captions) >= FEWEST_QUERIES:
        taken = captions.sample(BANK_ROWS)
        banks["videos"] = captions.raw(taken), f"{len(taken):,} captions"
    if len(captions) and len(videos) >= FEWEST_QUERIES:
        taken = videos.sample(BANK_ROWS)
        banks["captions"] = videos.raw(taken), f"{len(taken):,} segments"
    return banks


def _read(path: Path, what_to_do: str) -> dict[str, np.ndarray] | None:
    try:
        return load_arrays(path)
    except ValueError as error:
        raise Damaged(f"{error}; {what_to_do}") from error
