"""The catalogue: a SQLite database that is the truth about what a store holds.

Written by one process (``indexer.store.writer.StoreWriter``), in WAL mode, each change one durable transaction that
also bumps ``revision`` and logs which videos and captions it touched. A generation carries a copy of it
(``indexer.store.snapshot``); what was committed since that copy, readers take from here (``indexer.store.overlay``).

``CatalogueReader`` only reads, ``Catalogue`` also changes. The functions at the end are the checks of ``emcl index
verify``.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from indexer.errors import NotAStore, SourceError
from indexer.locations import Location, SourceRow, possible_sources, protocol_of, shard_of
from indexer.store import media, sql, transcripts, words
from indexer.store.config import StoreSettings
from indexer.store.records import CaptionRow, Origin, SegmentRow, TranscriptRow, VideoRow, VideoState
from indexer.store.schema import (
    WITH_READ_RECORDINGS,
    WITH_RECORDINGS,
    WITH_TRANSCRIPTS,
    check_format,
    database_uri,
    migrate,
)
from indexer.store.shards import CAPTIONS, FRAMES, POOLED, Place
from model.video.recording import Recording

SHORTEST_ID = 8
"""Digits of a video id that are enough to name it."""

_SUMMARIES = """
    SELECT video_id, state, reason, duration_seconds, size_bytes,
        (SELECT count(*) FROM segments s WHERE s.video_id = v.video_id),
        (SELECT count(*) FROM captions c WHERE c.video_id = v.video_id)
    FROM videos v
"""

_TAGS = "SELECT video_id, tag FROM tags ORDER BY video_id, tag"


def read_settings(path: Path) -> StoreSettings | None:
    """The settings in the catalogue at ``path``, None while nothing was encoded or published with them.

    Raises ``NotAStore`` or ``NewerFormat``.
    """
    with closing(CatalogueReader.open_readonly(path)) as catalogue:
        return catalogue.settings if catalogue.is_settled() else None


class CatalogueReader:
    """The open catalogue. Not thread-safe: it belongs to the thread that opened it.

    ``connection`` is for ``indexer.store.catalogue``; everything else goes through the methods.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path

    @staticmethod
    def open_readonly(path: Path) -> CatalogueReader:
        """Open for reading beside a writer. Raises ``NotAStore`` or ``NewerFormat``."""
        return CatalogueReader(connect(path, "ro"), path)

    def close(self) -> None:
        """Close the database."""
        self.connection.close()

    @property
    def store(self) -> Path:
        """The folder of the store."""
        return self.path.parent

    @property
    def revision(self) -> int:
        """How many transactions have changed this catalogue."""
        return int(self._meta("revision") or 0)

    @property
    def settings(self) -> StoreSettings | None:
        """What the store was built with; None in a store that was never given any."""
        found = self._meta("settings")
        return None if found is None else StoreSettings(**json.loads(found))

    def locations(self) -> list[Location]:
        """Every place where a video was seen."""
        rows = self.connection.execute("SELECT path, video_id, size_bytes, modified_ns FROM locations ORDER BY path")
        inodes = self._inodes()
        return [
            Location(
                path=media.resolved(self.store, p, v), video_id=v, size_bytes=s, modified_ns=m, inode=inodes.get(p)
            )
            for p, v, s, m in rows
        ]

    def _inodes(self) -> dict[str, int]:
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version < _FIRST_VERSIONS["inodes"]:  # opened for reading alone, so not migrated
            return {}
        return dict(self.connection.execute("SELECT path, inode FROM inodes").fetchall())

    def states(self) -> dict[str, VideoState]:
        """The state of every video."""
        return dict(self.connection.execute("SELECT video_id, state FROM videos").fetchall())

    def failure(self, video_id: str) -> str | None:
        """Why a video could not be read; None if it could, or was not tried yet."""
        query = "SELECT reason FROM videos WHERE video_id = ? AND state = 'failed'"
        found = self.connection.execute(query, (video_id,)).fetchone()
        return None if found is None else str(found[0])

    def has_tag(self, video_id: str, tag: str) -> bool:
        """Whether a video has a tag."""
        query = "SELECT EXISTS (SELECT 1 FROM tags WHERE video_id = ? AND tag = ?)"
        return bool(self.connection.execute(query, (video_id, tag)).fetchone()[0])

    def has_caption(self, video_id: str | None, text: str) -> bool:
        """Whether a video (or, with None, no video) has a caption."""
        query = "SELECT EXISTS (SELECT 1 FROM captions WHERE ifnull(video_id, '') = ifnull(?, '') AND text = ?)"
        return bool(self.connection.execute(query, (video_id, text)).fetchone()[0])

    def caption_ids(self, captions: Sequence[tuple[str | None, str]]) -> list[int | None]:
        """The id of each caption, given as (video id or None, text); None where there is none."""
        query = "SELECT caption_id FROM captions WHERE ifnull(video_id, '') = ifnull(?, '') AND text = ?"
        found = [self.connection.execute(query, caption).fetchone() for caption in captions]
        return [None if row is None else int(row[0]) for row in found]

    def has_caption_id(self, caption_id: int) -> bool:
        """Whether there is a caption with this id."""
        query = "SELECT EXISTS (SELECT 1 FROM captions WHERE caption_id = ?)"
        return bool(self.connection.execute(query, (caption_id,)).fetchone()[0])

    def state(self, video_id: str) -> VideoState | None:
        """The state of one video; None if it is not known."""
        found = self.connection.execute("SELECT state FROM videos WHERE video_id = ?", (video_id,)).fetchone()
        return None if found is None else found[0]

    def paths(self, video_id: str) -> list[str]:
        """Where a video was seen."""
        query = "SELECT path FROM locations WHERE video_id = ? ORDER BY path"
        names = [str(row[0]) for row in self.connection.execute(query, (video_id,))]
        return [media.resolved(self.store, name, video_id) for name in names]

    def transcript_sources(self, video_id: str) -> dict[str, tuple[Origin, str, str]]:
        """By language, the origin, source and version of each transcript of a video, also of those removed."""
        if not self._has_table("transcripts"):  # an earlier catalogue, opened for reading
            return {}
        query = "SELECT language, origin, source, version FROM transcripts WHERE video_id = ?"
        rows = self.connection.execute(query, (video_id,))
        return {language: (origin, source, version) for language, origin, source, version in rows}

    def transcripts(self, video_id: str) -> list[TranscriptRow]:
        """The transcripts of a video with their cues, also those that were removed, which have none."""
        found = []
        for language, (origin, source, version) in self.transcript_sources(video_id).items():
            cues = transcripts.cues_of(self.connection, video_id, language)
            found.append(
                TranscriptRow(language=language, origin=origin, source=source, version=version, cues=tuple(cues))
            )
        return found

    def recording(self, video_id: str) -> Recording:
        """When, where and with what a video was recorded, as far as it is known."""
        if not self._has_table("recordings"):
            return Recording()
        query = "SELECT recorded, camera, latitude, longitude FROM recordings WHERE video_id = ?"
        row = self.connection.execute(query, (video_id,)).fetchone()
        if row is None:
            return Recording()
        return Recording(recorded_seconds=row[0], camera=row[1], latitude=row[2], longitude=row[3])

    def titles(self) -> dict[str, str]:
        """The titles that videos were given."""
        if not self._has_table("titles"):  # the first catalogues, opened for reading
            return {}
        return dict(self.connection.execute("SELECT video_id, title FROM titles").fetchall())

    def sources(self) -> list[SourceRow]:
        """Tar shards and URLs that were read, or could not be."""
        if not self._has_table("sources"):
            return []
        rows = self.connection.execute("SELECT name, size_bytes, version, complete, reason FROM sources ORDER BY name")
        return [SourceRow(name=n, size_bytes=s, version=v, complete=bool(c), reason=r) for n, s, v, c, r in rows]

    def source(self, name: str) -> SourceRow | None:
        """The state of one source."""
        query = "SELECT size_bytes, version, complete, reason FROM sources WHERE name = ?"
        found = self.connection.execute(query, (name,)).fetchone()
        if found is None:
            return None
        size, version, complete, reason = found
        return SourceRow(name=name, size_bytes=size, version=version, complete=bool(complete), reason=reason)

    def has_title(self, video_id: str) -> bool:
        """Whether a video was given a title."""
        query = "SELECT EXISTS (SELECT 1 FROM titles WHERE video_id = ?)"
        return bool(self.connection.execute(query, (video_id,)).fetchone()[0])

    def sizes(self) -> dict[str, int]:
        """Bytes of every video."""
        return dict(self.connection.execute("SELECT video_id, size_bytes FROM videos").fetchall())

    def summaries(self) -> list[dict[str, Any]]:
        """Every video for a listing, with its paths, its tags and how many segments and captions it has."""
        rows = self.connection.execute(_SUMMARIES).fetchall()
        names = ("video_id", "state", "reason", "duration_seconds", "size_bytes", "segments", "captions")
        summaries = [dict(zip(names, row, strict=True)) for row in rows]
        for key, query in (("paths", "SELECT video_id, path FROM locations ORDER BY 2"), ("tags", _TAGS)):
            lists: dict[str, list[str]] = defaultdict(list)
            for video_id, value in self.connection.execute(query):
                lists[video_id].append(value)
            for summary in summaries:
                summary[key] = lists[summary["video_id"]]
        for summary in summaries:
            summary["paths"] = [media.resolved(self.store, path, summary["video_id"]) for path in summary["paths"]]
        return sorted(summaries, key=lambda summary: (summary["paths"], summary["video_id"]))

    def find_videos(self, names: Sequence[str]) -> list[str]:
        """Ids of the videos called ``names``: ids, their first 8 or more digits, or paths of files that were indexed.

        Raises ``SourceError`` for a name that no video or more than one goes by.
        """
        paths = {location.path: location.video_id for location in self.locations()}
        known = self.states()
        found: dict[str, None] = {}
        for name in names:
            matches = {paths[path] for path in (name, os.path.abspath(name)) if path in paths}  # noqa: PTH100
            if not matches and len(name) >= SHORTEST_ID:
                matches = {video_id for video_id in known if video_id.startswith(name.lower())}
            if len(matches) != 1:
                many = f"{len(matches)} videos" if matches else "no video"
                raise SourceError(f"{name!r} names {many}; `emcl index list` shows ids and paths")
            found[matches.pop()] = None
        return list(found)

    def has_content(self) -> bool:
        """Whether there is any indexed video or any searchable caption."""
        query = "SELECT EXISTS (SELECT 1 FROM segments) OR EXISTS (SELECT 1 FROM searchable_captions)"
        return bool(self.connection.execute(query).fetchone()[0])

    def is_settled(self) -> bool:
        """Whether anything was ever encoded or published with the settings, so that they cannot change any more."""
        if (self.path.parent / "CURRENT").exists():
            return True
        return bool(self.connection.execute("SELECT EXISTS (SELECT 1 FROM shards)").fetchone()[0])

    def row_counts(self) -> tuple[int, int]:
        """Number of segments and of captions."""
        query = "SELECT (SELECT count(*) FROM segments), (SELECT count(*) FROM captions)"
        segments, captions = self.connection.execute(query).fetchone()
        return segments, captions

    def shard_rows(self, kind: str) -> dict[int, int]:
        """Committed rows of each shard of one kind."""
        return dict(self.connection.execute("SELECT shard, rows FROM shards WHERE kind = ?", (kind,)).fetchall())

    def copy_to(self, path: Path) -> None:
        """Write a consistent, compact copy of the whole catalogue to ``path``, which must not exist."""
        self.connection.execute("VACUUM INTO ?", (str(path),))

    def _has_table(self, name: str) -> bool:
        query = "SELECT EXISTS (SELECT 1 FROM main.sqlite_schema WHERE type = 'table' AND name = ?)"
        return bool(self.connection.execute(query, (name,)).fetchone()[0])

    def _meta(self, key: str) -> str | None:
        found = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else str(found[0])


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection to the database at ``path`` in SQLite's ``mode`` (`ro`, `rw`, `rwc`), its format checked.

    Raises ``NotAStore`` or ``NewerFormat``.
    """
    if mode != "rwc" and not path.exists():
        raise NotAStore(f"{path.parent} holds no store (no {path.name}); make one with `emcl index build`")
    connection = sqlite3.connect(database_uri(path, f"mode={mode}"), uri=True, isolation_level=None)
    try:
        check_format(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


ShardRows = Mapping[str, Mapping[int, int]]
"""Committed rows by kind and shard number."""


class Catalogue(CatalogueReader):
    """The catalogue open for writing. Every change but ``forget_changes`` must run inside ``transaction``."""

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Catalogue:
        """Open for writing and bring the schema up to date. Raises ``NotAStore`` or ``NewerFormat``."""
        catalogue = cls(connect(path, "rwc" if create else "rw"), path)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                catalogue.connection.execute(f"PRAGMA {pragma}")
            migrate(catalogue.connection)
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside are committed durably together, or none is. Counts as one revision."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.refresh_words()
            self._set_meta("revision", str(self.revision + 1))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def refresh_words(self) -> None:
        """Update the documents of the videos that this transaction touched."""
        query = "SELECT video_id FROM changed_videos WHERE revision = ?"
        words.refresh(self.connection, [row[0] for row in self.connection.execute(query, (self.revision + 1,))])

    def save_settings(self, settings: StoreSettings) -> None:
        """Record what the store is built with."""
        self._set_meta("settings", settings.model_dump_json())

    def add_pending(self, video_id: str, size_bytes: int) -> None:
        """Record that there is a video, unless it is known."""
        self.connection.execute(
            "INSERT INTO videos (video_id, state, size_bytes) VALUES (?, 'pending', ?) ON CONFLICT DO NOTHING",
            (video_id, size_bytes),
        )

    def add_source(self, source: SourceRow) -> None:
        """Record the state of a tar shard or a URL."""
        self.connection.execute(
            "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?)",
            (source.name, source.size_bytes, source.version, source.complete, source.reason),
        )

    def add_location(self, location: Location) -> None:
        """Record where a video was seen; a video that is not known yet becomes ``pending``."""
        self.add_pending(location.video_id, location.size_bytes)
        name = media.recorded(self.store, location.path, location.video_id)
        if name != location.path:
            query = "DELETE FROM locations WHERE video_id = ? AND path != ? AND path LIKE '%/' || ?"
            self.connection.execute(query, (location.video_id, name, name))  # its former, absolute name
        self.connection.execute(
            # REPLACE would drop the former row unseen by the log of changes.
            "INSERT INTO locations VALUES (?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
            " video_id = excluded.video_id, size_bytes = excluded.size_bytes, modified_ns = excluded.modified_ns"
            # A row that stays as it is must not be logged as a change.
            " WHERE video_id != excluded.video_id OR size_bytes != excluded.size_bytes"
            " OR modified_ns != excluded.modified_ns",
            (name, location.video_id, location.size_bytes, location.modified_ns),
        )
        if location.inode is None:
            self.connection.execute("DELETE FROM inodes WHERE path = ?", (name,))
        else:
            self.connection.execute("INSERT OR REPLACE INTO inodes VALUES (?, ?)", (name, location.inode))

    def forget_locations(self, paths: Iterable[str]) -> None:
        """Remove locations; their videos stay."""
        for path in paths:
            self._forget_location(path, media.video_of(PurePath(path).name))

    def _forget_location(self, path: str, video_id: str | None) -> None:
        names = {path}
        if video_id is not None:  # an own file may have been recorded under an absolute name, also of another place
            query = "SELECT path FROM locations WHERE video_id = ?"
            known = [str(row[0]) for row in self.connection.execute(query, (video_id,))]
            here = media.resolved(self.store, path, video_id)
            names |= {name for name in known if media.resolved(self.store, name, video_id) == here}
        self.connection.executemany("DELETE FROM locations WHERE path = ?", [(name,) for name in names])

    def add_video(self, video: VideoRow) -> None:
        """Turn a pending or failed video into an indexed one with its segments."""
        changed = self.connection.execute(
            "UPDATE videos SET state = 'indexed', reason = ?, duration_seconds = ?, width = ?, height = ?"
            " WHERE video_id = ? AND state != 'indexed'",
            (video.reason, video.duration_seconds, video.width, video.height, video.video_id),
        ).rowcount
        assert changed == 1, f"video {video.video_id} is unknown or already indexed"
        self.connection.executemany(
            "INSERT INTO segments (video_id, number, start_seconds, end_seconds, timestamps_seconds, shard, row,"
            " frames, crc32, pooled_shard, pooled_row, pooled_crc32) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [_segment_values(video.video_id, segment) for segment in video.segments],
        )
        self.set_recording(video.video_id, video.recording)
        known = self.transcript_sources(video.video_id)
        for transcript in video.transcripts:
            if transcript.language not in known:
                self.set_transcript(video.video_id, transcript)

    def set_recording(self, video_id: str, said: Recording) -> None:
        """Record what a video says about itself; where it says no time, that of its oldest file."""
        time = self._file_time(video_id) if said.recorded_seconds is None else said.recorded_seconds
        self.connection.execute(
            "INSERT OR REPLACE INTO recordings VALUES (?, ?, ?, ?, ?)",
            (video_id, time, said.camera, said.latitude, said.longitude),
        )
        self.connection.execute("INSERT OR IGNORE INTO read_recordings VALUES (?)", (video_id,))

    def _file_time(self, video_id: str) -> float | None:
        """When the oldest file of a video was written; None for members of archives and URLs, which have a version."""
        query = "SELECT path, modified_ns / 1e9 FROM locations WHERE video_id = ? AND modified_ns > 0"
        rows = self.connection.execute(query, (video_id,)).fetchall()
        return min((time for path, time in rows if shard_of(path) is None and protocol_of(path) is None), default=None)

    def without_read_recording(self) -> set[str]:
        """Indexed videos that an earlier version did not ask when and where they were recorded."""
        query = "SELECT video_id FROM videos WHERE state = 'indexed' EXCEPT SELECT video_id FROM read_recordings"
        return {row[0] for row in self.connection.execute(query)}

    def fail_video(self, video_id: str, reason: str) -> None:
        """Record why a video cannot be indexed."""
        self.connection.execute(
            "UPDATE videos SET state = 'failed', reason = ? WHERE video_id = ? AND state != 'indexed'",
            (reason, video_id),
        )

    def add_captions(self, captions: Iterable[CaptionRow]) -> None:
        """Add captions; a text that its video already has is left as it is."""
        self.connection.executemany(
            "INSERT INTO captions (video_id, text, shard, row, crc32) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [(c.video_id, c.text, c.place.shard, c.place.row, c.place.crc32) for c in captions],
        )

    def set_transcript(self, video_id: str, transcript: TranscriptRow) -> None:
        """Give a video a transcript, in place of the one that it has in that language."""
        self.remove_transcript(video_id, transcript.language)
        number = self.connection.execute(
            "INSERT INTO transcripts (video_id, language, origin, source, version) VALUES (?, ?, ?, ?, ?)",
            (video_id, transcript.language, transcript.origin, transcript.source, transcript.version),
        ).lastrowid
        self.connection.executemany(
            "INSERT INTO cues VALUES (?, ?, ?, ?, ?)",
            [(number, n, cue.start_seconds, cue.end_seconds, cue.text) for n, cue in enumerate(transcript.cues)],
        )

    def remove_transcript(self, video_id: str, language: str) -> None:
        """Forget the transcript of a video in a language, if it has one."""
        query = "DELETE FROM transcripts WHERE video_id = ? AND language = ?"
        self.connection.execute(query, (video_id, language))

    def add_tags(self, tags: Iterable[tuple[str, str]]) -> None:
        """Add tags, given as (video id, tag)."""
        self.connection.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tags)

    def remove_video(self, video_id: str) -> None:
        """Remove a video with its segments, captions, tags and locations.

        The shards and URLs that it came from count as not read, so that they are looked at again.
        """
        sources = {name for path in self.paths(video_id) for name in possible_sources(path)}
        self.connection.executemany("UPDATE sources SET complete = 0 WHERE name = ?", [(name,) for name in sources])
        self.connection.execute("DELETE FROM videos WHERE video_id = ?", (video_id,))

    def set_tags(self, video_id: str, tags: Iterable[str]) -> None:
        """Give a video exactly these tags."""
        self.connection.execute("DELETE FROM tags WHERE video_id = ?", (video_id,))
        self.add_tags((video_id, tag) for tag in tags)

    def set_title(self, video_id: str, title: str | None) -> None:
        """Set the title of a video; None removes it."""
        self.connection.execute("DELETE FROM titles WHERE video_id = ?", (video_id,))
        if title is not None:
            self.connection.execute("INSERT INTO titles VALUES (?, ?)", (video_id, title))

    def remove_captions(self, caption_ids: Iterable[int]) -> None:
        """Forget captions."""
        self.connection.executemany("DELETE FROM captions WHERE caption_id = ?", [(c,) for c in caption_ids])

    def set_shard_rows(self, rows: ShardRows) -> None:
        """Record how many rows of each shard count."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO shards VALUES (?, ?, ?)",
            [(kind, shard, count) for kind, shards in rows.items() for shard, count in shards.items()],
        )

    def forget_shards(self, kind: str, shards: Iterable[int]) -> None:
        """Drop shards in which no row is named any more."""
        self.connection.executemany("DELETE FROM shards WHERE kind = ? AND shard = ?", [(kind, n) for n in shards])

    def forget_changes(self, until: int) -> None:
        """Drop the log of changes up to a revision; a generation older than that is compared as a whole instead.

        Not a change of what the catalogue says, so no revision; not worth a transaction of its own kind either.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.execute("DELETE FROM changed_videos WHERE revision <= ?", (until,))
        self.connection.execute("DELETE FROM changed_captions WHERE revision <= ?", (until,))
        self.connection.execute("UPDATE change_log SET since = max(since, ?)", (until,))
        self.connection.execute("COMMIT")

    def _set_meta(self, key: str, value: str) -> None:
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _segment_values(video_id: str, segment: SegmentRow) -> tuple[object, ...]:
    window = (segment.number, segment.start_seconds, segment.end_seconds)
    times = np.ascontiguousarray(segment.timestamps_seconds, dtype="<f8").tobytes()
    frames, pooled = segment.frames, segment.pooled
    places = (frames.shard, frames.row, frames.rows, frames.crc32, pooled.shard, pooled.row, pooled.crc32)
    return (video_id, *window, times, *places)


PLACES = {
    FRAMES.name: "SELECT segment_id, shard, row, frames, crc32 FROM segments ORDER BY shard, row",
    POOLED.name: "SELECT segment_id, pooled_shard, pooled_row, 1, pooled_crc32 FROM segments ORDER BY 2, 3",
    CAPTIONS.name: "SELECT caption_id, shard, row, 1, crc32 FROM captions ORDER BY shard, row",
}
"""By kind of shard: id, shard, first row, rows and checksum of everything that is stored, in the order of the files."""

# Versions of the catalogue; a copy that an earlier one made has no such table.
_FIRST_VERSIONS = {"titles": 2, "sources": 3, "inodes": 6, "documents": WITH_TRANSCRIPTS}
_FIRST_VERSIONS |= dict.fromkeys(("transcripts", "cues"), WITH_TRANSCRIPTS)
_FIRST_VERSIONS |= {"recordings": WITH_RECORDINGS, "read_recordings": WITH_READ_RECORDINGS}

_EQUAL_TABLES = {
    table: sql.exists(sql.differing(*(sql.select("*", sql.table(table, schema)) for schema in ("main", "copy"))))
    for table in (
        "meta",
        "shards",
        "videos",
        "titles",
        "locations",
        "tags",
        "segments",
        "recordings",
        "read_recordings",
        "captions",
        "sources",
        "inodes",
        "documents",
        "transcripts",
        "cues",
    )
}

# Without the places in the shards: `emcl index compact` changes them.
_LASTING = {
    "segments": "segment_id, video_id, number, start_seconds, end_seconds, timestamps_seconds, frames, crc32,"
    " pooled_crc32",
    "captions": "caption_id, video_id, text, crc32",
}

_UNCHANGED_ROWS = {
    table: sql.exists(
        sql.except_(
            sql.select(lasting, f"copy.{table}", sql.within(key, sql.select(key, f"main.{table}"))),
            sql.select(lasting, f"main.{table}"),
        )
    )
    for (table, lasting), key in zip(_LASTING.items(), ("segment_id", "caption_id"), strict=True)
}


def places(catalogue: CatalogueReader, kind: str) -> Iterator[tuple[str, Place]]:
    """The place and the name of each row of one kind of shard, in the order of the files."""
    for number, shard, row, rows, crc32 in catalogue.connection.execute(PLACES[kind]):
        what = f"{'caption' if kind == CAPTIONS.name else 'segment'} {number}"
        yield what, Place(shard=shard, row=row, rows=rows, crc32=crc32)


def integrity_errors(catalogue: CatalogueReader) -> list[str]:
    """What SQLite finds wrong with the file and its references."""
    found = [row[0] for row in catalogue.connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    broken = {row[0] for row in catalogue.connection.execute("PRAGMA foreign_key_check")}
    return found + [f"rows of {table} refer to videos that are not there" for table in sorted(broken)]


def differing_tables(catalogue: CatalogueReader, copy: Path, *, same_revision: bool) -> list[str]:
    """Tables that differ from those in ``copy``, an earlier ``copy_to`` of this catalogue.

    At the same revision nothing may differ; later, the rows of segments and captions that are still there may not.
    """
    catalogue.connection.execute("ATTACH ? AS copy", (database_uri(copy, "mode=ro&immutable=1"),))
    try:
        queries = _EQUAL_TABLES if same_revision else _UNCHANGED_ROWS
        versions = (f"PRAGMA {name}.user_version" for name in ("main", "copy"))
        version = min(catalogue.connection.execute(query).fetchone()[0] for query in versions)
        there = {table: query for table, query in queries.items() if version >= _FIRST_VERSIONS.get(table, 1)}
        return [table for table, query in there.items() if catalogue.connection.execute(query).fetchone()[0]]
    finally:
        catalogue.connection.execute("DETACH copy")
