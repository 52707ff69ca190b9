"""The engine follows the store: collections are made, filled, kept up to date, verified, exchanged and dropped.

The log of changes that each transaction of the catalogue writes (``changed_videos``, ``changed_captions``) is the
outbox. Every step writes rows by the catalogue's ids, so that it can be repeated: a process that is killed anywhere
leaves a record (``engine.json``) that is behind the engine, never ahead of it, and the next one continues from there.

Legend: N rows, M coordinates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from indexer.engine.reader import WithoutIndexes, changes_since
from indexer.engine.state import CollectionState, EngineState, check_prefix, lock, need_state, read_state
from indexer.engine.vector_engine import CollectionSpec, EngineRow, VectorEngine
from indexer.errors import EngineError
from indexer.store import generation
from indexer.store.reader import IdArray, StoreReader

logger = logging.getLogger(__name__)

Side = Literal["videos", "captions"]
OnRows = Callable[[int], None]

BATCH_ROWS = 1000
"""Rows of one write: 2 MB at 512 channels; servers take up to 64 MB."""
VIDEOS_AT_ONCE = 200
VERIFIED_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What a step wrote to the engine, and the revision that it is at now."""

    revision: int
    written: int
    deleted: int


@dataclass(frozen=True, kw_only=True)
class Check:
    """What ``verify`` found: ``problems`` is empty if the collections hold what the store does."""

    segments: int
    captions: int
    compared: int
    problems: tuple[str, ...]


def create(store: Path, engine: VectorEngine, *, prefix: str, index: str = "auto") -> str:
    """Make an empty pair of collections for the current generation's map; returns its name, such as ``g1``."""
    with lock(store), _view(store) as view:
        state = read_state(store) or EngineState(prefix=check_prefix(prefix))
        if state.prefix != prefix:
            raise EngineError(f"the collections of {store} are called {state.prefix}_…, not {prefix}_…; use that name")
        name, digest = state.next_name(), generation.digest_of(view.correction)
        record = CollectionState(map_digest=digest, index=index)
        # Recorded first: from here on publications keep the map.
        state = replace(state, collections={**state.collections, name: record}).write(store)
        sides: tuple[tuple[Side, str], ...] = (("videos", state.videos(name)), ("captions", state.captions(name)))
        try:
            for side, collection in sides:
                engine.drop(collection)  # of a store that had this name before
                width = view.correction.width(side, view.manifest.dim)
                engine.create(CollectionSpec(name=collection, dim=width, index=index, map_digest=digest))
        except EngineError:
            remaining = {other: known for other, known in state.collections.items() if other != name}
            replace(state, collections=remaining).write(store)
            raise
        return name


def fill(store: Path, engine: VectorEngine, name: str | None = None, on_rows: OnRows = lambda count: None) -> Applied:
    """Bring collections up to date, from nothing if need be; the first that is filled becomes current.

    After a kill it continues where it was. ``name`` None: the current ones, else the newest.
    """
    with lock(store):
        state = need_state(store)
        name = name or state.current or max(state.collections, key=lambda known: int(known[1:]))
        if state.of(name).applied_revision is None:
            state = _fill_first(store, engine, state, name, on_rows)
        applied = _apply(store, engine, name, on_rows)
        if need_state(store).current is None:
            _switch(store, engine, name)
        return applied


def apply_changes(store: Path, engine: VectorEngine) -> Applied:
    """Bring all filled collections up to date; the applier calls this repeatedly."""
    with lock(store):
        state = need_state(store)
        filled = [name for name, record in state.collections.items() if record.applied_revision is not None]
        applied = [_apply(store, engine, name, lambda count: None) for name in filled]
        return Applied(
            revision=min((one.revision for one in applied), default=0),
            written=sum(one.written for one in applied),
            deleted=sum(one.deleted for one in applied),
        )


def behind(store: Path) -> int:
    """Revisions of the catalogue that the current collections do not hold yet; 0 without collections."""
    state = read_state(store)
    if state is None or state.current is None:
        return 0
    with _view(store) as view:
        return max(0, view.revision - (state.of(state.current).applied_revision or 0))


def verify(store: Path, engine: VectorEngine, name: str | None = None) -> Check:
    """Compare collections with the store: their numbers of rows, and up to 1000 vectors of each bit by bit."""
    with lock(store), _view(store) as view:
        state = need_state(store)
        name = name or state.current or state.next_name()
        record = state.of(name)
        if record.applied_revision is None:
            raise EngineError(f"{name} was not filled to the end; run `emcl engine fill`")
        if record.applied_revision != view.revision:
            raise EngineError(
                f"{name} is at revision {record.applied_revision}, the store at {view.revision}; run `emcl engine fill`"
            )
        problems: list[str] = []
        own, compared = generation.digest_of(view.correction), 0
        for side, collection, ids_N in _sides(view, state, name):
            facts = engine.facts(collection)
            if facts.rows != len(ids_N):
                problems.append(f"{collection} holds {facts.rows} rows, the store {len(ids_N)}")
            if facts.map_digest != own:
                problems.append(f"{collection} is of map {facts.map_digest[:12]}, the store of {own[:12]}")
            sample_N = ids_N[np.linspace(0, len(ids_N) - 1, min(VERIFIED_ROWS, len(ids_N))).astype(int)]
            stored = engine.vectors(collection, sample_N.tolist())
            for number, row_M in zip(sample_N.tolist(), view.mapped_rows(side, sample_N), strict=True):
                if number not in stored:
                    problems.append(f"{collection} has no row {number}")
                elif not np.allclose(stored[number], row_M, rtol=0, atol=1e-6):  # blocks of other sizes round otherwise
                    problems.append(f"row {number} of {collection} is another vector")
            compared += len(sample_N)
        return Check(
            segments=view.counts.segments, captions=view.counts.captions, compared=compared, problems=tuple(problems)
        )


def switch(store: Path, engine: VectorEngine, name: str) -> None:
    """Let searches use other collections, which were filled. Services that watch the store follow by themselves."""
    with lock(store):
        _apply(store, engine, name, lambda count: None)
        _switch(store, engine, name)


def drop(store: Path, engine: VectorEngine, name: str) -> None:
    """Remove collections; the last ones also while they are in use, since the store can be served without."""
    with lock(store):
        state = need_state(store)
        state.of(name)
        if state.current == name and len(state.collections) > 1:
            raise EngineError(f"{name} is in use; run `emcl engine switch` to another first")
        remaining = {other: record for other, record in state.collections.items() if other != name}
        current = None if state.current == name else state.current
        replace(state, current=current, collections=remaining).write(store)
        for collection in (state.videos(name), state.captions(name)):
            engine.drop(collection)


def _view(store: Path) -> StoreReader:
    return StoreReader.open(store, serving=WithoutIndexes())


def _sides(view: StoreReader, state: EngineState, name: str) -> tuple[tuple[Side, str, IdArray], ...]:
    return (
        ("videos", state.videos(name), view.segment_ids()),
        ("captions", state.captions(name), view.caption_ids()),
    )


def _check_map(view: StoreReader, state: EngineState, name: str) -> None:
    own, theirs = generation.digest_of(view.correction), state.of(name).map_digest
    if own != theirs:
        raise EngineError(
            f"{name} is of map {theirs[:12]}, generation {view.manifest.generation} of {own[:12]}; make a new one with "
            "`emcl engine create`"
        )


def _fill_first(store: Path, engine: VectorEngine, state: EngineState, name: str, on_rows: OnRows) -> EngineState:
    """Write everything that the store holds, in the order of ids, and record how far it came after each write."""
    with _view(store) as view:
        _check_map(view, state, name)
        if not state.of(name).fill_revision:
            state = state.changed(name, fill_revision=view.revision).write(store)
        for side, collection, ids_N in _sides(view, state, name):
            done = "filled_segments" if side == "videos" else "filled_captions"
            ids_N = ids_N[ids_N > getattr(state.of(name), done)]
            for start in range(0, len(ids_N), BATCH_ROWS):
                part_N = ids_N[start : start + BATCH_ROWS]
                engine.upsert(collection, rows_of(view, side, part_N))
                state = state.changed(name, **{done: int(part_N[-1])}).write(store)
                on_rows(len(part_N))
            engine.settle(collection)
        return state.changed(name, applied_revision=state.of(name).fill_revision).write(store)


def _apply(store: Path, engine: VectorEngine, name: str, on_rows: OnRows) -> Applied:
    """Write and delete what changed since the recorded revision, then record the new one."""
    state = need_state(store)
    applied = state.of(name).applied_revision
    if applied is None:
        raise EngineError(f"{name} was not filled to the end; run `emcl engine fill {name}`")
    with _view(store) as view:
        _check_map(view, state, name)
        if view.revision == applied:
            return Applied(revision=applied, written=0, deleted=0)
        changes = changes_since(store, applied)
        written = deleted = 0
        for start in range(0, len(changes.videos), VIDEOS_AT_ONCE):
            videos = changes.videos[start : start + VIDEOS_AT_ONCE]
            present = (view.select_segments(video_ids=videos), view.captions_of_videos(videos))
            for (side, collection, held), ids_N in zip(_sides(view, state, name), present, strict=True):
                ids_N = np.intersect1d(ids_N, held)
                written += _upsert(engine, view, side, collection, ids_N)
                gone = np.setdiff1d(np.array(engine.ids_of_videos(collection, videos), dtype=np.int64), ids_N)
                engine.delete(collection, gone.tolist())
                deleted += len(gone)
            on_rows(len(videos))
        loose = np.array(changes.captions, dtype=np.int64)
        here = np.intersect1d(loose, view.caption_ids())
        written += _upsert(engine, view, "captions", state.captions(name), here)
        gone = np.setdiff1d(loose, here)
        engine.delete(state.captions(name), gone.tolist())
        if len(changes):
            for _, collection, _ in _sides(view, state, name):
                engine.settle(collection)
        state.changed(name, applied_revision=view.revision).write(store)
        return Applied(revision=view.revision, written=written, deleted=deleted + len(gone))


def _upsert(engine: VectorEngine, view: StoreReader, side: Side, collection: str, ids_N: IdArray) -> int:
    for start in range(0, len(ids_N), BATCH_ROWS):
        engine.upsert(collection, rows_of(view, side, ids_N[start : start + BATCH_ROWS]))
    return len(ids_N)


def rows_of(view: StoreReader, side: Side, ids_N: IdArray) -> Sequence[EngineRow]:
    """Rows of a view as the engine stores them: mapped vectors with what filters need."""
    rows_NM = view.mapped_rows(side, ids_N)
    if side == "videos":
        fields = view.filter_fields(ids_N)
    else:
        fields = [(caption.video_id or "", 0.0, ()) for caption in view.captions(ids_N)]
    return [
        EngineRow(id=int(number), video_id=video_id, seconds=seconds, tags=tags, vector_M=row_M)
        for number, (video_id, seconds, tags), row_M in zip(ids_N, fields, rows_NM, strict=True)
    ]


def _switch(store: Path, engine: VectorEngine, name: str) -> None:
    state = need_state(store)
    if state.of(name).applied_revision is None:
        raise EngineError(f"{name} was not filled to the end; run `emcl engine fill {name}`")
    engine.switch(f"{state.prefix}_videos", state.videos(name))
    engine.switch(f"{state.prefix}_captions", state.captions(name))
    replace(state, current=name).write(store)
