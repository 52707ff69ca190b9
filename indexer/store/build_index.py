"""One index over one side of a store: chosen, built, tuned, measured.

In: the vectors of a side, those of the other side to ask with, and what the settings want. Out: an index, and a report
of what it is and what it finds, which the manifest keeps.

Two sets of queries: probes and refinement are chosen on one, the reported recall is measured on the other, which had no
part in the choice. Queries are captions that look for videos, and videos that look for captions; where the other side
is (almost) empty, vectors of the same side, moved by half the difference of two others. Recall is the share of the
exact ``depth`` best that is found; what scores as high as the last of them counts too.

Legend: Q queries, N vectors, D channels, w width of a shortlist.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.ann import index as ann
from indexer.ann.choose import AUTO, Bounds, Candidate, candidates
from indexer.ann.index import FaissIndex, Rows, exact_scores
from indexer.ann.recipe import CAGRA
from indexer.store.config import IndexReport, StoreSettings
from indexer.store.vectors import MappedSide

logger = logging.getLogger(__name__)

TRAINING_ROWS = 262_144
"""Most rows that an index with k-means trains on: 256 for each of 1,024 lists, FAISS's own upper limit."""

EXACT = "none needed: exact"

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
QUERIES = 400
"""Half to choose by, half to measure by."""
DEPTH = 100
"""Candidates that a search takes by default."""
FEWEST_QUERIES = 100
SCORE_TOLERANCE = 1e-5
"""A neighbour this close to the last that counts is a tie with it: rounding of float32 sums, not a miss."""
HEADROOM = 0.25
"""The choice leaves out a quarter less than it may, so that other queries find enough too."""
REFINEMENTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


def write_index(
    path: Path,
    own: MappedSide,
    other: MappedSide,
    settings: StoreSettings,
    *,
    names: tuple[str, str],
    memory_bytes: int,
    bounds: Bounds | None = None,
) -> IndexReport:
    """Write the index of ``own`` to ``path``; ``names`` are those of both sides.

    Raises ``IndexFactoryError`` if a kind that was asked for by name cannot be built. ``auto`` always can.
    """
    if len(own) == 0:
        return _written(path, build(own, _exact(own.dim)), _exact(own.dim), None, settings)
    if settings.factory != AUTO:
        given = _given(settings)
        index = build(own, given)
        asked = None if given.is_exact else ask(own, other, names=names)
        return _written(path, index, given, asked, settings, None if asked is None else _measured(index, asked, own))
    asked = None
    for candidate in candidates(len(own), own.dim, memory_bytes, bounds):
        index = build(own, candidate)
        if candidate.is_exact:
            return _written(path, index, candidate, None, settings)
        asked = asked or ask(own, other, names=names)
        tuned = tune(index, candidate, asked, own.rows, settings.index_recall)
        if tuned is not None:
            logger.info("%s: %s with %s finds %.4f", names[0], candidate.factory, tuned[0], tuned[1])
            return _written(path, index, candidate, asked, settings, tuned)
        logger.info("%s: %s does not find %g of what there is", names[0], candidate.factory, settings.index_recall)
        del index
    raise AssertionError("the last candidate is exact")


def _given(settings: StoreSettings) -> Candidate:
    return Candidate(factory=settings.factory, options=settings.options, bytes_per_vector=0.0, mapped=False)


def _exact(dim: int) -> Candidate:
    return Candidate(factory="Flat", bytes_per_vector=4.0 * dim, mapped=False)


def build(own: MappedSide, candidate: Candidate) -> ann.FaissIndex:
    """Train and fill an index of one kind."""
    dim = own.dim
    train = np.zeros((0, dim), dtype=np.float32)
    if candidate.factory != CAGRA and len(own) and not ann.make(candidate, dim).is_trained:
        train = own.sample(min(candidate.training_rows or TRAINING_ROWS, TRAINING_ROWS))
    return ann.build(candidate, dim, own.side.ids_N, own.blocks(), train_rows=train, rows=own.rows)


def _measured(index: ann.FaissIndex, asked: Asked, own: MappedSide) -> tuple[str, float]:
    return "", measure(index, asked.half(1), own.rows)


def _written(
    path: Path,
    index: ann.FaissIndex,
    candidate: Candidate,
    asked: Asked | None,
    settings: StoreSettings,
    found: tuple[str, float] | None = None,
) -> IndexReport:
    index.save(path)
    options, recall = found or ("", 1.0)
    return IndexReport(
        factory=candidate.factory,
        options=options or candidate.options,
        auto=settings.factory == AUTO,
        mapped=candidate.mapped,
        vectors=len(index),
        bytes_per_vector=round(path.stat().st_size / max(1, len(index)), 1),
        recall=round(recall, 5),
        depth=DEPTH if asked is None else asked.depth,
        queries=0 if asked is None else len(asked.half(1).rows_QD),
        source=EXACT if asked is None else asked.source,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Queries ``(Q, D)``, where they came from, and the score of the last exact neighbour that counts for each."""

    rows_QD: Floats
    source: str
    least_Q: Floats
    depth: int

    def half(self, number: int) -> Asked:
        """Every other query; of too few to part, all."""
        if len(self.rows_QD) < 2:
            return self
        return replace(self, rows_QD=self.rows_QD[number::2], least_Q=self.least_Q[number::2])


def ask(own: MappedSide, other: MappedSide, *, names: tuple[str, str], queries: int = QUERIES) -> Asked:
    """Queries for the index of ``own``, with their exact neighbours; ``names`` of both sides, for ``source``."""
    if len(other) >= FEWEST_QUERIES:
        rows_QD, source = own.asked_by(other.raw_sample(queries), other.name), names[1]
    else:
        moved_QD = _moved(_unit(own.raw_sample(3 * queries)))
        rows_QD, source = own.asked_by(moved_QD, own.name), f"{names[0]}, moved"
    depth = min(DEPTH, len(own))
    return Asked(rows_QD=rows_QD, source=source, least_Q=least_scores(rows_QD, own.blocks(), depth), depth=depth)


def least_scores(queries_QD: Floats, blocks: Iterable[Floats], depth: int) -> Floats:
    """The score of the ``depth``-th best of all rows for each query, by comparing with every one."""
    best_Qk = np.full((len(queries_QD), depth), -np.inf, dtype=np.float32)
    for block_ND in blocks:
        scores = np.concatenate([best_Qk, queries_QD @ block_ND.T], axis=1)
        best_Qk = np.partition(scores, scores.shape[1] - depth, axis=1)[:, -depth:]
    least: Floats = best_Qk.min(axis=1)
    return least


def recall_of(scores_Qw: Floats, asked: Asked) -> float:
    """Recall, from the exact scores of the results."""
    found_Q = np.count_nonzero(scores_Qw >= asked.least_Q[:, None] - SCORE_TOLERANCE, axis=1)
    return float(np.mean(np.minimum(found_Q, asked.depth) / asked.depth))


def measure(index: FaissIndex, asked: Asked, rows: Rows) -> float:
    """Recall of an index as it is searched."""
    _, ids_Qk = index.search(asked.rows_QD, asked.depth)
    positions_Qk = np.where(ids_Qk < 0, -1, np.searchsorted(index.ids, ids_Qk))
    return recall_of(exact_scores(rows, asked.rows_QD, positions_Qk), asked)


def tune(index: FaissIndex, candidate: Candidate, asked: Asked, rows: Rows, target: float) -> tuple[str, float] | None:
    """Search options with which the index finds ``target`` of what there is, and the recall that was then measured.

    ``index`` is left with those options. None if it cannot: then another kind is wanted.
    """
    chosen_by, measured_by = asked.half(0), asked.half(1)
    wanted = 1 - (1 - target) * (1 - HEADROOM)
    for probes in _probes(candidate.lists):
        index.configure(_options(probes, 1.0))
        refine = _least_refinement(index, candidate, chosen_by, rows, wanted)
        if refine is None:
            continue
        options = _options(probes, refine)
        index.configure(options)
        recall = measure(index, measured_by, rows)
        if recall >= target:
            return options, recall
    return None


def _least_refinement(index: FaissIndex, candidate: Candidate, asked: Asked, rows: Rows, wanted: float) -> float | None:
    """The smallest factor with which enough is found: all are judged by parts of one long shortlist."""
    factors = [factor for factor in REFINEMENTS if factor <= candidate.largest_refine]
    positions_Qw = index.shortlist(asked.rows_QD, int(np.ceil(asked.depth * factors[-1])))
    scores_Qw = exact_scores(rows, asked.rows_QD, positions_Qw)
    for factor in factors:
        if recall_of(scores_Qw[:, : int(np.ceil(asked.depth * factor))], asked) >= wanted:
            return factor
    return None


def _probes(lists: int) -> list[int]:
    """Lists to look at: ever more, up to a quarter of all, where scanning everything is as fast."""
    if not lists:
        return [0]
    steps = sorted({round(2 ** (half / 2)) for half in range(2 * lists.bit_length())})
    return [step for step in steps if step <= max(1, lists // 4)]


def _options(probes: int, refine: float) -> str:
    return ",".join([*([f"nprobe={probes}"] if probes else []), f"refine={refine:g}"])


def _moved(rows_ND: Floats) -> Floats:
    """A third of the rows, each moved by half the difference of two others."""
    third = max(1, len(rows_ND) // 3)
    moved = rows_ND[:third] + 0.5 * (np.roll(rows_ND, third, axis=0)[:third] - np.roll(rows_ND, -third, axis=0)[:third])
    return _unit(moved)


def _unit(rows_ND: Floats) -> Floats:
    norms = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    scaled: Floats = (rows_ND / np.maximum(norms, 1e-12)).astype(np.float32)
    return scaled
