"""The catalogue: a SQLite database that is the truth about what a store holds.

Written by one process (``indexer.store.writer.StoreWriter``), in WAL mode, each change one durable transaction that
also bumps ``revision`` and logs which videos and captions it touched. A generation carries a copy of it
(``indexer.store.snapshot``); what was committed since that copy, readers take from here (``indexer.store.overlay``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from indexer.sources.tar import possible_sources
from indexer.store.catalogue_reader import CatalogueReader, connect
from indexer.store.config import StoreSettings
from indexer.store.rows import CaptionRow, Location, SegmentRow, SourceRow, VideoRow
from indexer.store.schema import migrate

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
            self._set_meta("revision", str(self.revision + 1))
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

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
        """Record what became of a tar shard or a URL."""
        self.connection.execute(
            "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?)",
            (source.name, source.size_bytes, source.version, source.complete, source.reason),
        )

    def add_location(self, location: Location) -> None:
        """Record where a video was seen; a video that is not known yet becomes ``pending``."""
        self.add_pending(location.video_id, location.size_bytes)
        self.connection.execute(
            # REPLACE would drop the former row unseen by the log of changes.
            "INSERT INTO locations VALUES (?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET"
            " video_id = excluded.video_id, size_bytes = excluded.size_bytes, modified_ns = excluded.modified_ns",
            (location.path, location.video_id, location.size_bytes, location.modified_ns),
        )

    def forget_locations(self, paths: Iterable[str]) -> None:
        """Drop places; their videos stay."""
        self.connection.executemany("DELETE FROM locations WHERE path = ?", [(path,) for path in paths])

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

    def add_tags(self, tags: Iterable[tuple[str, str]]) -> None:
        """Add tags, given as (video id, tag)."""
        self.connection.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", tags)

    def remove_video(self, video_id: str) -> None:
        """Forget a video with its segments, captions, tags and places.

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
        """Give a video a title, or with None take it away."""
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
        for table in ("changed_videos", "changed_captions"):
            self.connection.execute(f"DELETE FROM {table} WHERE revision <= ?", (until,))  # noqa: S608
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
