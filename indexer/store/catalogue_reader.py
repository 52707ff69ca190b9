"""What a store holds, as its catalogue says: every question that one can ask it, and no way to change anything."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from indexer.errors import NotAStore, SourceError
from indexer.store.config import StoreSettings
from indexer.store.records import VideoState
from indexer.store.rows import Location, SourceRow
from indexer.store.schema import check_format, database_uri

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

    ``connection`` is for ``indexer.store.audit``; everything else goes through the methods.
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
        return [Location(path=p, video_id=v, size_bytes=s, modified_ns=m) for p, v, s, m in rows]

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
        return [str(row[0]) for row in self.connection.execute(query, (video_id,))]

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
        """What became of one source."""
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
