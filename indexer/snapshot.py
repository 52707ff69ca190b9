"""The copy of the catalogue inside a generation: immutable, opened read-only by any number of threads.

Everything that is listed, counted or filtered comes from here, and so agrees with what is searchable.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from indexer.config import Counts
from indexer.records import Caption, Segment, Video, VideoState
from indexer.schema import database_uri

T = TypeVar("T")
Places = npt.NDArray[np.void]
IdArray = npt.NDArray[np.int64]

SEGMENT_PLACES = np.dtype(
    [("id", "<i8"), ("row", "<i8"), ("pooled_row", "<i8"), ("shard", "<i4"), ("pooled_shard", "<i4"), ("frames", "<i4")]
)
CAPTION_PLACES = np.dtype([("id", "<i8"), ("row", "<i8"), ("shard", "<i4")])

_VARIABLES = 500
"""Ids in one statement; SQLite's lowest compiled-in limit of variables is 999."""


class Snapshot:
    """Reads from one catalogue copy, with one connection for each thread that asks."""

    def __init__(self, path: Path) -> None:
        self._uri = database_uri(path, "mode=ro&immutable=1")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Close the connections of all threads; no call may be running."""
        with self._lock:
            self._closed = True
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def counts(self) -> Counts:
        """How much the generation holds."""
        count = self._value
        return Counts(
            videos=count("SELECT count(*) FROM videos WHERE state = 'indexed'"),
            segments=count("SELECT count(*) FROM segments"),
            captions=count("SELECT count(*) FROM searchable_captions"),
            failed=count("SELECT count(*) FROM videos WHERE state = 'failed'"),
        )

    @property
    def revision(self) -> int:
        """The catalogue's change counter when it was copied."""
        return int(self._value("SELECT ifnull((SELECT value FROM meta WHERE key = 'revision'), 0)"))

    def segment_places(self) -> Places:
        """Where the features of every segment lie: ``SEGMENT_PLACES`` records in ascending id."""
        return self._array(
            "SELECT segment_id, row, pooled_row, shard, pooled_shard, frames FROM segments ORDER BY segment_id",
            SEGMENT_PLACES,
        )

    def caption_places(self) -> Places:
        """Where the features of every searchable caption lie: ``CAPTION_PLACES`` records in ascending id."""
        return self._array(
            "SELECT caption_id, row, shard FROM searchable_captions ORDER BY caption_id",
            CAPTION_PLACES,
        )

    def segments(self, ids: Sequence[int]) -> list[Segment]:
        """The segments with these ids, in this order. Raises ``KeyError`` for an id that does not exist."""
        rows = self._by_ids("SELECT * FROM segment_windows WHERE segment_id IN", ids)
        found = {row[0]: _segment(row) for row in rows}
        return [_existing(found, number, "segment") for number in ids]

    def captions(self, ids: Sequence[int]) -> list[Caption]:
        """The captions with these ids, in this order. Raises ``KeyError`` for an id that does not exist."""
        rows = self._by_ids("SELECT caption_id, video_id, text FROM captions WHERE caption_id IN", ids)
        found = {row[0]: Caption(caption_id=row[0], video_id=row[1], text=row[2]) for row in rows}
        return [_existing(found, number, "caption") for number in ids]

    def video(self, video_id: str) -> Video | None:
        """One video, also one that failed; None if there is none with this id."""
        videos = self._videos("WHERE video_id = ?", (video_id,))
        return videos[0] if videos else None

    def list_videos(self, offset: int, limit: int, state: VideoState | None) -> list[Video]:
        """A page of videos in the order of their ids; ``state`` None lists all of them."""
        where, values = ("", ()) if state is None else ("WHERE state = ?", (state,))
        return self._videos(f"{where} ORDER BY video_id LIMIT ? OFFSET ?", (*values, limit, offset))

    def select_segments(
        self, tags: Sequence[str], min_seconds: float | None, max_seconds: float | None, video_ids: Sequence[str] | None
    ) -> IdArray:
        """Ids of the segments of the videos that match every condition given; see ``StoreReader.select_segments``."""
        conditions, values = ["v.state = 'indexed'"], list[object]()
        for tag in dict.fromkeys(tags):
            conditions.append("EXISTS (SELECT 1 FROM tags t WHERE t.video_id = v.video_id AND t.tag = ?)")
            values.append(tag)
        if min_seconds is not None:
            conditions.append("v.duration_seconds >= ?")
            values.append(min_seconds)
        if max_seconds is not None:
            conditions.append("v.duration_seconds <= ?")
            values.append(max_seconds)
        query = f"SELECT segment_id FROM segments JOIN videos v USING (video_id) WHERE {' AND '.join(conditions)}"  # noqa: S608
        if video_ids is None:
            rows = self._connection().execute(query, values).fetchall()
        else:
            rows = self._by_ids(f"{query} AND video_id IN", video_ids, values)
        return np.unique(np.array([row[0] for row in rows], dtype=np.int64))

    def _videos(self, tail: str, values: Sequence[object]) -> list[Video]:
        columns = "video_id, duration_seconds, width, height, size_bytes, state, reason"
        rows = self._connection().execute(f"SELECT {columns} FROM videos {tail}", values).fetchall()  # noqa: S608
        return [self._video(row) for row in rows]

    def _video(self, row: Sequence[Any]) -> Video:
        video_id, duration, width, height, size, state, reason = row

        def select(query: str) -> list[tuple[Any, ...]]:
            return self._connection().execute(query, (video_id,)).fetchall()

        paths = tuple(r[0] for r in select("SELECT path FROM locations WHERE video_id = ? ORDER BY path"))
        segments = select("SELECT * FROM segment_windows WHERE video_id = ? ORDER BY number")
        captions = select("SELECT caption_id, text FROM captions WHERE video_id = ? ORDER BY caption_id")
        return Video(
            video_id=video_id,
            path=paths[0] if paths else None,
            paths=paths,
            duration_seconds=duration,
            width=width,
            height=height,
            size_bytes=size,
            tags=tuple(r[0] for r in select("SELECT tag FROM tags WHERE video_id = ? ORDER BY tag")),
            state=state,
            reason=reason,
            segments=tuple(_segment(r) for r in segments),
            captions=tuple(Caption(caption_id=c, video_id=video_id, text=t) for c, t in captions),
        )

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with self._lock:
                if self._closed:
                    raise ValueError("this reader was closed; open the store again")
                # check_same_thread off: close() is called from one thread for the connections of all
                connection = sqlite3.connect(self._uri, uri=True, check_same_thread=False)
                self._connections.append(connection)
            self._local.connection = connection
        return connection

    def _value(self, query: str) -> int:
        return int(self._connection().execute(query).fetchone()[0])

    def _array(self, query: str, dtype: np.dtype[np.void]) -> Places:
        return np.fromiter(self._connection().execute(query), dtype=dtype)

    def _by_ids(
        self, query: str, ids: Sequence[int] | Sequence[str], values: Sequence[object] = ()
    ) -> list[tuple[Any, ...]]:
        rows = []
        for start in range(0, len(ids), _VARIABLES):
            part = ids[start : start + _VARIABLES]
            marks = ", ".join("?" * len(part))
            rows += self._connection().execute(f"{query} ({marks})", (*values, *part)).fetchall()
        return rows


def _segment(row: Sequence[Any]) -> Segment:
    segment_id, video_id, number, start, end, times = row
    return Segment(
        segment_id=segment_id,
        video_id=video_id,
        number=number,
        start_seconds=start,
        end_seconds=end,
        timestamps_seconds=np.frombuffer(times, dtype="<f8"),
    )


def _existing(found: dict[int, T], number: int, what: str) -> T:
    if number not in found:
        raise KeyError(f"this generation has no {what} {number}")
    return found[number]
