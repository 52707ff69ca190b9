"""Verifying a store.

Checks the checksums of every kept generation, of every committed row in the shards, and the catalogue against the copy
of it in the current generation; then the recall of the FAISS indexes against exact search.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged, NewerFormat, NotAStore, StoreError
from indexer.store import catalogue as audit
from indexer.store import generation
from indexer.store.catalogue import CatalogueReader
from indexer.store.config import IndexReport
from indexer.store.reader import StoreReader
from indexer.store.shards import HEADER_BYTES, SHARD_KINDS, ShardKind, ShardReader, header_rows
from indexer.store.vectors import BLOCK_ROWS
from indexer.store.writer import acquire_lock

if TYPE_CHECKING:
    from model.emcl.correction import Side
    from model.emcl.paired import Modality

OnRow = Callable[[], None]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
QUERIES = 200
DEPTH = 10
SCORE_TOLERANCE = 1e-5
"""A neighbour this close to the last that counts is a tie with it: rounding of float32 sums, not a miss."""


@dataclass(kw_only=True)
class Verification:
    """``problems`` is damage, ``notes`` are informative; ``recall`` maps ``videos`` and ``captions`` to recall@10.

    ``indexes`` is what the manifest says of the same two.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked_segments: int = 0
    checked_captions: int = 0
    recall: dict[str, float] = field(default_factory=dict)
    indexes: dict[str, IndexReport] = field(default_factory=dict)


def verify(store: Path, on_row: OnRow = lambda: None) -> Verification:
    """Check a whole store while no writer changes it; ``on_row`` is called for each segment and caption read.

    Damage is reported, not raised. Raises ``NotAStore``, ``NewerFormat`` or ``StoreLocked``.
    """
    if not (store / generation.CATALOGUE).exists():
        raise NotAStore(f"{store} holds no store (no {generation.CATALOGUE}); make one with `emcl index build`")
    found = Verification()
    with acquire_lock(store):
        _check_generations(store, found)
        try:
            with closing(CatalogueReader.open_readonly(store / generation.CATALOGUE)) as catalogue:
                _check_catalogue(store, catalogue, found)
                _check_shards(store, catalogue, found, on_row)
        except NewerFormat:
            raise
        except (sqlite3.DatabaseError, ValueError) as error:
            found.problems.append(_catalogue_problem(store, str(error)))
        if not found.problems and (store / generation.CURRENT).exists():
            with StoreReader.open(store) as reader:
                found.recall = measure_recall(reader)
                found.indexes = reader.manifest.indexes
    return found


def _check_generations(store: Path, found: Verification) -> None:
    if not (store / generation.CURRENT).exists():
        found.notes.append("nothing was published yet; `emcl index build` run to its end publishes")
        return
    current = store / generation.GENERATIONS / generation.current_name(store)
    try:
        generation.check_files(current, generation.read_manifest(current))
    except Damaged as error:
        found.problems.append(str(error))
    for folder in generation.kept(store):
        if folder == current:
            continue
        try:
            generation.check_files(folder, generation.read_manifest(folder))
        except Damaged as error:
            found.notes.append(f"a former generation is damaged and goes with the next but one: {error}")


def _check_catalogue(store: Path, catalogue: CatalogueReader, found: Verification) -> None:
    found.problems += [_catalogue_problem(store, message) for message in audit.integrity_errors(catalogue)]
    if catalogue.settings is None:
        found.problems.append(_catalogue_problem(store, "the settings are missing"))
    if found.problems or not (store / generation.CURRENT).exists():
        return
    manifest = generation.read_current(store)
    folder, published = store / generation.GENERATIONS / manifest.generation, manifest.revision
    if catalogue.revision < published:
        problem = f"it is at revision {catalogue.revision}, but revision {published} was published"
        found.problems.append(_catalogue_problem(store, problem))
    if catalogue.revision > published:
        found.notes.append("the catalogue holds changes that are not published; `emcl index rebuild` publishes them")
    tables = audit.differing_tables(
        catalogue, folder / generation.SNAPSHOT, same_revision=catalogue.revision == published
    )
    found.problems += [
        _catalogue_problem(store, f"table {table} differs from the copy that was published") for table in tables
    ]


def _catalogue_problem(store: Path, message: str) -> str:
    path = store / generation.CATALOGUE
    copy = store / generation.GENERATIONS / "<current>" / generation.SNAPSHOT
    return (
        f"{path}: {message}; to go back to the published state, delete {path.name}-wal and {path.name}-shm, copy "
        f"{copy} over it, and run `emcl index build` again"
    )


def _check_shards(store: Path, catalogue: CatalogueReader, found: Verification, on_row: OnRow) -> None:
    settings = catalogue.settings
    if settings is None:
        return
    for kind in SHARD_KINDS:
        committed = catalogue.shard_rows(kind.name)
        sound = {n: rows for n, rows in committed.items() if _sound(store, kind, settings.dim, n, rows, found)}
        with closing(ShardReader(store / generation.FEATURES, kind, settings.dim, sound)) as reader:
            for what, place in audit.places(catalogue, kind.name):
                on_row()
                if place.shard in committed and place.shard not in sound:
                    continue  # the whole file was reported
                if place.row + place.rows > committed.get(place.shard, 0):
                    found.problems.append(f"{what} is beyond the committed rows of {kind.file_name(place.shard)}")
                elif zlib.crc32(reader.rows(place.shard, place.row, place.rows).tobytes()) != place.crc32:
                    found.problems.append(
                        f"{what}: its features in {store / generation.FEATURES / kind.file_name(place.shard)} are not "
                        "what was written; restore the file, or remove its video and index it again"
                    )
    found.checked_segments, found.checked_captions = catalogue.row_counts()


def _sound(store: Path, kind: ShardKind, dim: int, shard: int, rows: int, found: Verification) -> bool:
    """Whether a shard file has the header and size that its committed rows need; reports what is wrong."""
    path = store / generation.FEATURES / kind.file_name(shard)
    try:
        ShardReader(store / generation.FEATURES, kind, dim, {shard: rows}).close()
        size, row_bytes = path.stat().st_size - HEADER_BYTES, kind.row_bytes(dim)
        claimed = header_rows(path, dim, kind.dtype)
        if not rows <= claimed <= size // row_bytes:
            raise Damaged(f"{path} claims {claimed} rows, expected {rows}; restore it from a copy")
    except StoreError as error:
        found.problems.append(str(error))
        return False
    if size > rows * row_bytes:
        found.notes.append(f"{path} ends with rows of an interrupted run; the next `emcl index build` removes them")
    return True


def measure_recall(reader: StoreReader, *, queries: int = QUERIES, depth: int = DEPTH) -> dict[str, float]:
    """Recall@``depth`` of both indexes, ``videos`` and ``captions``; a side without vectors is left out.

    The exact search is done blockwise over the stored vectors, without the index that it judges. Queries are stored
    vectors of the other side: captions look for videos, videos for captions.
    """
    segments, captions = reader.segment_ids(), reader.caption_ids()
    recall = {}
    if len(segments):
        asked = _queries(reader, "text" if len(captions) else "video", "videos", queries)
        _, found = reader.search_videos(asked, min(depth, len(segments)))
        recall["videos"] = _recall(reader, asked, found, segments, "videos")
    if len(captions):
        asked = _queries(reader, "video" if len(segments) else "text", "captions", queries)
        _, found = reader.search_captions(asked, min(depth, len(captions)))
        recall["captions"] = _recall(reader, asked, found, captions, "captions")
    return recall


def _recall(reader: StoreReader, queries_QD: Floats, found_Qk: Ids, ids_N: Ids, side: Side) -> float:
    """Share of ``found_Qk`` whose exact score reaches that of the k-th exact neighbour."""
    depth = found_Qk.shape[1]
    best_Qk = np.full(found_Qk.shape, -np.inf, dtype=np.float32)
    scores_Qk = np.full(found_Qk.shape, -np.inf, dtype=np.float32)
    for start in range(0, len(ids_N), BLOCK_ROWS):
        ids = ids_N[start : start + BLOCK_ROWS]
        embed = reader.segment_embeddings if side == "videos" else reader.caption_embeddings
        block_QN = queries_QD @ reader.correction.items(embed(ids), side).T
        best_Qk = -np.sort(-np.concatenate([best_Qk, block_QN], axis=1), axis=1)[:, :depth]
        position = np.clip(np.searchsorted(ids, found_Qk), 0, len(ids) - 1)
        here = ids[position] == found_Qk
        scores_Qk[here] = np.take_along_axis(block_QN, position, axis=1)[here]
    return float(np.mean(scores_Qk >= best_Qk[:, -1:] - SCORE_TOLERANCE))


def _queries(reader: StoreReader, modality: Modality, against: Side, count: int) -> Floats:
    """Stored rows of a modality as queries of a side."""
    if modality == "text":
        rows_QD = reader.caption_embeddings(_sample(reader.caption_ids(), count))
    else:
        rows_QD = reader.segment_embeddings(_sample(reader.segment_ids(), count))
    return reader.correction.queries(rows_QD, modality, against)


def _sample(ids: Ids, count: int) -> Ids:
    return np.sort(np.random.default_rng(0).choice(ids, size=min(count, len(ids)), replace=False))
