"""What was committed since a generation was published, derived from the catalogue: the overlay.

In: the catalogue and the generation's copy of it. Out: an immutable value that says which of the generation's rows are
gone, which are new, and what the catalogue now says about every video that was touched. It is never written: each
process that opens the store derives it again, so that it is correct after any crash of any writer.

A video (or a caption of no video) that was touched is *changed*: everything about it comes from the overlay, and
everything about the others from the generation. Segments and captions themselves never change and their ids are never
used again, so what is gone and what is new are differences of ids.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged
from indexer.store import sql
from indexer.store.config import Counts
from indexer.store.schema import WITH_RECORDINGS, check_format, database_uri, migrate
from indexer.store.snapshot import CAPTION_PLACES, SEGMENT_PLACES

Places = npt.NDArray[np.void]
IdArray = npt.NDArray[np.int64]

VIDEO_TABLES = ("videos", "titles", "locations", "tags", "segments", "recordings")
_FIRST_WITH_LOG = 2  # version of the catalogue
_FIRST_WITH = {"titles": _FIRST_WITH_LOG, "recordings": WITH_RECORDINGS}

_LOGGED = "(SELECT since FROM store.change_log) <= :base"
_CHANGED = """
INSERT INTO changed_videos SELECT video_id, revision FROM store.changed_videos WHERE revision > :base;
INSERT INTO changed_captions SELECT caption_id, revision FROM store.changed_captions WHERE revision > :base
"""
_TIMES_OF_FILES = """
INSERT INTO recordings SELECT video_id, min(modified_ns) / 1e9, NULL, NULL, NULL FROM locations
WHERE video_id IN (SELECT video_id FROM videos WHERE state = 'indexed') GROUP BY video_id
"""
_CHANGED_CAPTIONS = """
INSERT INTO captions SELECT * FROM store.captions WHERE video_id IN (SELECT video_id FROM changed_videos);
INSERT INTO captions SELECT * FROM store.captions WHERE caption_id IN (SELECT caption_id FROM changed_captions)
"""
_NEW_SEGMENTS = """
SELECT segment_id, row, pooled_row, shard, pooled_shard, frames FROM segments s
WHERE NOT EXISTS (SELECT 1 FROM base.segments b WHERE b.segment_id = s.segment_id) ORDER BY segment_id
"""
_GONE_SEGMENTS = """
SELECT segment_id FROM base.segments WHERE video_id IN (SELECT video_id FROM changed_videos)
EXCEPT SELECT segment_id FROM segments ORDER BY 1
"""
_BASE_CAPTIONS = """
SELECT caption_id FROM base.captions WHERE video_id IN (SELECT video_id FROM base.videos
    WHERE state = 'indexed' AND video_id IN (SELECT video_id FROM changed_videos))
UNION SELECT caption_id FROM base.captions
WHERE video_id IS NULL AND caption_id IN (SELECT caption_id FROM changed_captions)
"""
_NEW_CAPTIONS = sql.select(
    "caption_id, row, shard",
    "searchable_captions",
    f"{sql.within('caption_id NOT', _BASE_CAPTIONS)} ORDER BY caption_id",
)
_GONE_CAPTIONS = sql.except_(_BASE_CAPTIONS, "SELECT caption_id FROM searchable_captions ORDER BY 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlay:
    """What changed between a generation and the catalogue's ``revision``.

    ``content`` is a serialised SQLite database of the catalogue's tables with the changed videos and captions alone;
    None if nothing changed that can be listed or found. ``gains`` is what the generation's counts grew by.
    ``shard_rows`` are the committed rows of each shard by kind.
    """

    revision: int
    content: bytes | None
    new_segments: Places
    gone_segments: IdArray
    new_captions: Places
    gone_captions: IdArray
    gains: Counts
    shard_rows: dict[str, dict[int, int]]

    @property
    def rows(self) -> int:
        """Segments and captions that the generation does not know of, and those that it knows and that are gone."""
        parts = (self.new_segments, self.gone_segments, self.new_captions, self.gone_captions)
        return sum(len(part) for part in parts)


def empty(revision: int) -> Overlay:
    """The overlay of a generation that holds everything, as it does right after it was published."""
    none = np.zeros(0, dtype=np.int64)
    return Overlay(
        revision=revision,
        content=None,
        new_segments=np.zeros(0, dtype=SEGMENT_PLACES),
        gone_segments=none,
        new_captions=np.zeros(0, dtype=CAPTION_PLACES),
        gone_captions=none,
        gains=Counts(videos=0, segments=0, captions=0, failed=0),
        shard_rows={},
    )


def derive(catalogue: Path, base: Path, base_revision: int, known: int | None = None) -> Overlay | None:
    """The overlay over the generation whose snapshot is ``base``; None if the catalogue is still at ``known``.

    A store of which only the published part was copied has no catalogue, and so nothing but its generation. Raises
    ``Damaged`` for a catalogue that cannot be read or is older than the generation, ``NewerFormat`` or ``NotAStore``.
    """
    if not catalogue.exists():
        return None if known == base_revision else empty(base_revision)
    try:
        uri = readable_uri(catalogue)
        with closing(sqlite3.connect(uri, uri=True)) as alone:
            check_format(alone, catalogue)
            if known is not None and _revision(alone, "main") == known:
                return None
        with closing(sqlite3.connect("file::memory:", uri=True, isolation_level=None)) as database:
            attach(database, uri, base)
            return _derive(database, base_revision, catalogue)
    except sqlite3.DatabaseError as error:
        raise Damaged(
            f"{catalogue} cannot be read ({error}), so what was added or deleted since the last publication is not "
            "known; `emcl index verify` says how to repair it"
        ) from error


def changed_by_comparison(database: sqlite3.Connection, version: int) -> None:
    """Find the changed videos and captions by comparing all rows: what the log of changes says, without the log."""
    for table in (*VIDEO_TABLES, "captions"):
        if version < _FIRST_WITH.get(table, 0):
            continue
        now, then = (sql.select("*", sql.table(table, schema)) for schema in ("store", "base"))
        if _version(database, "base") < _FIRST_WITH.get(table, 0):
            if table == "recordings":
                continue  # what was recorded without the table is what the files say: no change
            then = "SELECT NULL, NULL WHERE 0"
        differing = f"({sql.differing(now, then)})"
        videos = sql.select("video_id, 0", differing, "video_id IS NOT NULL")
        database.execute(sql.insert("changed_videos", videos, ignore=True))
        if table == "captions":
            captions = sql.select("caption_id, 0", differing, "video_id IS NULL")
            database.execute(sql.insert("changed_captions", captions, ignore=True))


def attach(database: sqlite3.Connection, catalogue_uri: str, base: Path) -> None:
    """Make the tables of a catalogue, empty, and attach the catalogue as ``store``, a generation's copy as ``base``."""
    migrate(database)
    for (trigger,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {trigger}")
    for table in (
        "documents_fts",
        "documents",
        "document_counts",
        "cues",
        "transcripts",
    ):  # these are read from the catalogue itself
        database.execute(f"DROP TABLE {table}")
    database.execute("DELETE FROM change_log")
    database.execute("ATTACH ? AS store", (catalogue_uri,))
    database.execute("ATTACH ? AS base", (database_uri(base, "mode=ro&immutable=1"),))


def readable_uri(catalogue: Path) -> str:
    """A URI that opens the catalogue for reading, also where nothing may be written: on a read-only mount.

    SQLite needs its ``-wal`` and ``-shm`` files beside a database in WAL mode and cannot make them there. Without a
    log no process is writing, and the file alone is complete.
    """
    log = catalogue.with_name(f"{catalogue.name}-wal")
    uri = database_uri(catalogue, "mode=ro")
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        if log.exists() and log.stat().st_size:
            raise
        return database_uri(catalogue, "mode=ro&immutable=1")
    return uri


def _derive(database: sqlite3.Connection, base_revision: int, path: Path) -> Overlay:
    database.execute("BEGIN")  # one moment of the catalogue, whatever is committed meanwhile
    revision = _revision(database, "store")
    if revision < base_revision:
        raise Damaged(
            f"{path} is at revision {revision}, but revision {base_revision} was published; "
            "`emcl index verify` says how to repair it"
        )
    if revision == base_revision:
        return empty(revision)
    version = _version(database, "store")
    values = {"base": base_revision}
    if version >= _FIRST_WITH_LOG and database.execute(f"SELECT {_LOGGED}", values).fetchone()[0]:
        for statement in _CHANGED.split(";"):
            database.execute(statement, values)
    else:
        changed_by_comparison(database, version)
    _copy_changed(database, version)
    overlay = Overlay(
        revision=revision,
        content=None,
        new_segments=np.fromiter(database.execute(_NEW_SEGMENTS), dtype=SEGMENT_PLACES),
        gone_segments=_ids(database, _GONE_SEGMENTS),
        new_captions=np.fromiter(database.execute(_NEW_CAPTIONS), dtype=CAPTION_PLACES),
        gone_captions=_ids(database, _GONE_CAPTIONS),
        gains=empty(0).gains,
        shard_rows=_shard_rows(database),
    )
    gains = _gains(database, overlay)
    database.execute("COMMIT")
    changed = "SELECT EXISTS (SELECT 1 FROM changed_videos) OR EXISTS (SELECT 1 FROM changed_captions)"
    content = database.serialize() if database.execute(changed).fetchone()[0] else None
    return Overlay(**{**vars(overlay), "gains": gains, "content": content})


def _copy_changed(database: sqlite3.Connection, version: int) -> None:
    for table in VIDEO_TABLES:
        if version >= _FIRST_WITH.get(table, 0):
            changed = sql.within("video_id", "SELECT video_id FROM changed_videos")
            database.execute(sql.insert(table, sql.select("*", sql.table(table, "store"), changed)))
    if version < WITH_RECORDINGS:
        database.execute(_TIMES_OF_FILES)
    for statement in _CHANGED_CAPTIONS.split(";"):  # not executescript: that would end the transaction
        database.execute(statement)


def _gains(database: sqlite3.Connection, overlay: Overlay) -> Counts:
    def videos(state: str) -> int:
        query = """
            SELECT (SELECT count(*) FROM videos WHERE state = :state) - (SELECT count(*) FROM base.videos
                WHERE state = :state AND video_id IN (SELECT video_id FROM changed_videos))"""
        return int(database.execute(query, {"state": state}).fetchone()[0])

    return Counts(
        videos=videos("indexed"),
        segments=len(overlay.new_segments) - len(overlay.gone_segments),
        captions=len(overlay.new_captions) - len(overlay.gone_captions),
        failed=videos("failed"),
    )


def _shard_rows(database: sqlite3.Connection) -> dict[str, dict[int, int]]:
    rows: dict[str, dict[int, int]] = {}
    for kind, shard, count in database.execute("SELECT kind, shard, rows FROM store.shards"):
        rows.setdefault(kind, {})[shard] = count
    return rows


def _revision(database: sqlite3.Connection, schema: str) -> int:
    found = database.execute(sql.select("value", sql.table("meta", schema), "key = 'revision'")).fetchone()
    return 0 if found is None else int(found[0])


def _version(database: sqlite3.Connection, schema: str) -> int:
    return int(database.execute(f"PRAGMA {schema}.user_version").fetchone()[0])


def _ids(database: sqlite3.Connection, query: str) -> IdArray:
    return np.fromiter((row[0] for row in database.execute(query)), dtype=np.int64)
