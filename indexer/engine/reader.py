"""A view of a store whose stage 1 is an external engine: the same answers as ``StoreReader``, found elsewhere.

The engine only proposes candidates. The view decides: a row that the view does not hold is dropped, every score is
the exact cosine of the stored row under the generation's correction, and what changed since the engine was brought up
to date (``CollectionState.applied_revision``) is searched here, exactly, and never taken from the engine. So additions
are found and deletions are gone at once, however far the engine is behind, and neither its quantisation nor its
batching can be seen. A predicate that leaves few segments is answered without the engine, as is one that it cannot say
or that it answers with too few rows: inverted lists with a filter lose most of them.

Legend: Q queries, k neighbours, N rows, M coordinates.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from indexer.ann.flat import best_first
from indexer.ann.index import Exclusion, Rows, exact_scores
from indexer.engine.state import EngineState, need_state
from indexer.engine.vector_engine import VectorEngine
from indexer.errors import EngineBehind, EngineError
from indexer.library import EVERYTHING, Wanted
from indexer.store import generation
from indexer.store.catalogue import CatalogueReader
from indexer.store.config import IndexReport
from indexer.store.reader import FloatArray, IdArray, Serving, StoreReader

Side = Literal["videos", "captions"]

EXACT_ROWS = 4096
"""So few rows are scored exactly without asking the engine."""
MOST_FRESH = 50_000
"""Rows that changed since the engine was brought up to date and are searched here; more are an error."""
BLOCK_ROWS = 16_384


class PlacesOnly:
    """Takes the place of an index of the embedded store; knows only the ids."""

    def __init__(self, ids_N: IdArray) -> None:
        self.ids = ids_N

    def excluding(self, _: IdArray) -> Exclusion | None:
        """Nothing: the view is compared with every answer."""
        return None

    def search(
        self, queries_QD: FloatArray, k: int, allowed_ids: IdArray | None = None, *, without: Exclusion | None = None
    ) -> tuple[FloatArray, IdArray]:
        """Not here."""
        raise AssertionError("the vectors are searched by the engine")


class WithoutIndexes(Serving):
    """Opens a generation without its FAISS indexes."""

    def open(self, path: Path, ids_N: IdArray, rows: Rows, report: IndexReport | None) -> PlacesOnly:
        """The ids alone."""
        return PlacesOnly(ids_N)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the catalogue logged after a revision: videos, and captions of no video."""

    videos: tuple[str, ...]
    captions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.videos) + len(self.captions)


def changes_since(store: Path, revision: int) -> Changes:
    """What changed after ``revision``, as of now. Raises ``EngineBehind`` if the log begins later than that."""
    with closing(CatalogueReader.open_readonly(store / generation.CATALOGUE)) as catalogue:
        database: sqlite3.Connection = catalogue.connection
        since = int(database.execute("SELECT since FROM change_log").fetchone()[0])
        if since > revision:
            raise EngineBehind(
                f"the log of changes of {store} begins with revision {since}, the engine is at {revision}; make a new "
                "collection with `emcl engine create` and fill it"
            )
        videos = database.execute("SELECT video_id FROM changed_videos WHERE revision > ? ORDER BY 1", (revision,))
        names = tuple(str(row[0]) for row in videos)
        captions = database.execute(
            "SELECT caption_id FROM changed_captions WHERE revision > ? ORDER BY 1", (revision,)
        )
        return Changes(videos=names, captions=tuple(int(row[0]) for row in captions))


class EngineReader(StoreReader):
    """An open view over ``engine``. Use ``connected`` to open one."""

    engine: VectorEngine
    state: EngineState

    @classmethod
    def connected(
        cls,
        path: str | Path,
        engine: VectorEngine,
        *,
        fingerprint: str | None = None,
        former_fingerprints: Callable[[], frozenset[str]] = frozenset,
    ) -> EngineReader:
        """Open the store in ``path`` with the collections that it says are current.

        Raises what ``StoreReader.open`` raises, ``EngineUnavailable``, ``EngineBehind`` if too much has changed since
        the collections were brought up to date, and ``EngineError`` if they were filled under another map.
        """
        view = cls.open(
            path, fingerprint=fingerprint, former_fingerprints=former_fingerprints, serving=WithoutIndexes()
        )
        try:
            view._connect(engine)
        except BaseException:
            view.close()
            raise
        return view

    def _connect(self, engine: VectorEngine) -> None:
        self.engine, self.state = engine, need_state(self.path)
        name = self.state.current
        if name is None:
            raise EngineError(f"no collection of {self.path} is in use; run `emcl engine fill`")
        record = self.state.of(name)
        own = generation.digest_of(self.correction)
        for collection in (self.state.videos(name), self.state.captions(name)):
            facts = engine.facts(collection)
            if not own == facts.map_digest == record.map_digest:
                raise EngineError(
                    f"{collection} was filled under map {facts.map_digest[:12] or '(none)'}, generation "
                    f"{self.manifest.generation} has {own[:12]}; make and fill a new one with `emcl engine create`"
                )
        assert record.applied_revision is not None, "only a filled collection is made current"
        self._collections = {"videos": self.state.videos(name), "captions": self.state.captions(name)}
        self._find_fresh(record.applied_revision)

    def _find_fresh(self, applied: int) -> None:
        changes = changes_since(self.path, applied)
        segments = self.select_segments(video_ids=changes.videos)
        captions = np.intersect1d(self._captions_of(changes), self.caption_ids())
        if len(segments) + len(captions) > MOST_FRESH:
            raise EngineBehind(
                f"{len(segments)} segments and {len(captions)} captions changed since the engine was filled "
                f"(revision {applied} of {self.revision}); run `emcl engine fill`"
            )
        self._fresh_videos = changes.videos
        self._fresh: dict[Side, IdArray] = {"videos": segments, "captions": captions}
        self._fresh_rows = {side: self._rows(side, ids) for side, ids in self._fresh.items()}

    def _captions_of(self, changes: Changes) -> IdArray:
        of_videos = self.captions_of_videos(changes.videos)
        return np.union1d(of_videos, np.array(changes.captions, dtype=np.int64))

    def refreshed(self) -> EngineReader | None:
        """See ``StoreReader``; also a view with other collections, or with a newer state of them."""
        if need_state(self.path) == self.state and not self._is_outdated():
            return None
        return EngineReader.connected(self.path, self.engine, fingerprint=self.manifest.fingerprint)

    def _is_outdated(self) -> bool:
        with closing(CatalogueReader.open_readonly(self.path / generation.CATALOGUE)) as catalogue:
            newer = catalogue.revision != self.revision
        return newer or generation.current_name(self.path) != self.manifest.generation

    @property
    def version(self) -> str:
        """See ``StoreReader``."""
        return f"{super().version}:{self.state.current}"

    def search_videos(self, queries_QD: FloatArray, k: int, wanted: Wanted = EVERYTHING) -> tuple[FloatArray, IdArray]:
        """See ``Library``."""
        count, expression = self.count_matching(wanted), self.engine.expression(wanted)
        if count <= EXACT_ROWS or expression is None or 2 * k > self.engine.widest:
            return self._exact("videos", queries_QD, k, self.matching(wanted))
        fresh = np.isin(self._fresh["videos"], self.matching(wanted))
        return self._by_engine("videos", queries_QD, k, expression, count, fresh, lambda: self.matching(wanted))

    def search_captions(self, queries_QD: FloatArray, k: int) -> tuple[FloatArray, IdArray]:
        """See ``Library``."""
        every = self.caption_ids()
        if len(every) <= EXACT_ROWS or 2 * k > self.engine.widest:
            return self._exact("captions", queries_QD, k, every)
        fresh = np.ones(len(self._fresh["captions"]), dtype=bool)
        return self._by_engine("captions", queries_QD, k, "", len(every), fresh, lambda: every)

    def count_matching(self, wanted: Wanted) -> int:
        """See ``Library``. Without a filter, only the exceptions are looked up."""
        if not wanted.without_exceptions.is_everything:
            return super().count_matching(wanted)
        gone = np.union1d(
            np.array(wanted.without_segments, dtype=np.int64),
            self.select_segments(video_ids=wanted.without_videos) if wanted.without_videos else [],
        )
        return self.counts.segments - int(np.isin(gone.astype(np.int64), self.segment_ids()).sum())

    def _by_engine(
        self,
        side: Side,
        queries_QM: FloatArray,
        k: int,
        expression: str,
        count: int,
        fresh_wanted: np.ndarray,
        every: Callable[[], IdArray],
    ) -> tuple[FloatArray, IdArray]:
        width = min(max(2 * k, k + 32), self.engine.widest)
        shortlist_Qw = self.engine.shortlist(self._collections[side], queries_QM, width, expression)
        held = self.segment_ids() if side == "videos" else self.caption_ids()
        drop = ~_among(shortlist_Qw, held) | _among(shortlist_Qw, self._fresh[side])
        ids_Qw = np.where(drop, -1, shortlist_Qw)
        scores_Qw = exact_scores(lambda ids: self._rows(side, ids), queries_QM, ids_Qw)
        new_ids_F, new_rows_FM = self._fresh[side][fresh_wanted], self._fresh_rows[side][fresh_wanted]
        new_QF = np.stack([np.einsum("fm,m->f", new_rows_FM, query_M) for query_M in queries_QM])
        scores = np.hstack([scores_Qw, new_QF.astype(np.float32)])
        ids = np.hstack([ids_Qw, np.tile(new_ids_F, (len(queries_QM), 1))])
        scores, ids = _padded(*best_first(scores, ids, k), k)
        short = (ids >= 0).sum(axis=1) < min(k, count)
        if short.any():
            scores[short], ids[short] = self._exact(side, queries_QM[short], k, every())
        return scores, ids

    def _exact(self, side: Side, queries_QM: FloatArray, k: int, ids_N: IdArray) -> tuple[FloatArray, IdArray]:
        """The k best of given rows, each scored, block by block."""
        scores = np.full((len(queries_QM), 0), -np.inf, dtype=np.float32)
        ids = np.full((len(queries_QM), 0), -1, dtype=np.int64)
        for start in range(0, len(ids_N), BLOCK_ROWS):
            part_N = ids_N[start : start + BLOCK_ROWS]
            rows_NM = self._rows(side, part_N)
            part_QN = np.stack([np.einsum("nm,m->n", rows_NM, query_M) for query_M in queries_QM]).astype(np.float32)
            scores, ids = np.hstack([scores, part_QN]), np.hstack([ids, np.tile(part_N, (len(queries_QM), 1))])
            scores, ids = best_first(scores, ids, k)
        return _padded(scores, ids, k)

    def _rows(self, side: Side, ids_N: IdArray) -> FloatArray:
        """Rows (N, M) as the engine holds them."""
        return self.mapped_rows(side, ids_N)


def _among(ids: IdArray, sorted_ids: IdArray) -> np.ndarray:
    """Which of ``ids`` stand in ``sorted_ids``: by bisection, without a pass over all of them."""
    if not len(sorted_ids):
        return np.zeros(ids.shape, dtype=bool)
    places = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    found: np.ndarray = sorted_ids[places] == ids
    return found


def _padded(scores: FloatArray, ids: IdArray, k: int) -> tuple[FloatArray, IdArray]:
    missing = ((0, 0), (0, k - ids.shape[1]))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(ids, missing, constant_values=-1)
