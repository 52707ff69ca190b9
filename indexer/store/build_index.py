"""One index over one side of a store: chosen, built, tuned, measured.

In: the vectors of a side, those of the other side to ask with, and what the settings want. Out: an index, and a report
of what it is and what it finds, which the manifest keeps.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from indexer.ann import index as ann
from indexer.ann.choose import AUTO, Bounds, Candidate, candidates
from indexer.ann.recipe import CAGRA
from indexer.store import tune
from indexer.store.config import IndexReport, StoreSettings
from indexer.store.vectors import MappedSide

logger = logging.getLogger(__name__)

TRAINING_ROWS = 262_144
"""Most rows that an index with k-means trains on: 256 for each of 1,024 lists, FAISS's own upper limit."""

EXACT = "none needed: exact"


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
        return _written(path, _build(own, _exact(own.dim)), _exact(own.dim), None, settings)
    if settings.factory != AUTO:
        given = _given(settings)
        index = _build(own, given)
        asked = None if given.is_exact else tune.ask(own, other, names=names)
        return _written(path, index, given, asked, settings, None if asked is None else _measured(index, asked, own))
    asked = None
    for candidate in candidates(len(own), own.dim, memory_bytes, bounds):
        index = _build(own, candidate)
        if candidate.is_exact:
            return _written(path, index, candidate, None, settings)
        asked = asked or tune.ask(own, other, names=names)
        tuned = tune.tune(index, candidate, asked, own.rows, settings.index_recall)
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


def _build(own: MappedSide, candidate: Candidate) -> ann.FaissIndex:
    dim = own.dim
    train = np.zeros((0, dim), dtype=np.float32)
    if candidate.factory != CAGRA and len(own) and not ann.make(candidate, dim).is_trained:
        train = own.sample(min(candidate.training_rows or TRAINING_ROWS, TRAINING_ROWS))
    return ann.build(candidate, dim, own.side.ids_N, own.blocks(), train_rows=train, rows=own.rows)


def _measured(index: ann.FaissIndex, asked: tune.Asked, own: MappedSide) -> tuple[str, float]:
    return "", tune.measure(index, asked.half(1), own.rows)


def _written(
    path: Path,
    index: ann.FaissIndex,
    candidate: Candidate,
    asked: tune.Asked | None,
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
        depth=tune.DEPTH if asked is None else asked.depth,
        queries=0 if asked is None else len(asked.half(1).rows_QD),
        source=EXACT if asked is None else asked.source,
    )
