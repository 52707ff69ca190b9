"""The copy of the catalogue inside a generation, with an overlay over it: immutable, read by any number of threads.

Everything that is listed, counted or filtered comes from here, and so agrees with what is searchable. With an overlay
(``indexer.store.overlay``) each table is a view: the rows of changed videos from the overlay, all others from the copy.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged
from indexer.library import Wanted
from indexer.store import media, sql
from indexer.store.config import Counts
from indexer.store.records import Caption, Segment, Video, VideoOrder, VideoState
from indexer.store.schema import database_uri
from model.video.recording import Recording

T = TypeVar("T")
Places = npt.NDArray[np.void]
IdArray = npt.NDArray[np.int64]

SEGMENT_PLACES = np.dtype(
    [("id", "<i8"), ("row", "<i8"), ("pooled_row", "<i8"), ("shard", "<i4"), ("pooled_shard", "<i4"), ("frames", "<i4")]
)
CAPTION_PLACES = np.dtype([("id", "<i8"), ("row", "<i8"), ("shard", "<i4")])

_COLUMNS = {
    "videos": "video_id, state, reason, duration_seconds, width, height, size_bytes",
    "titles": "video_id, title",
    "locations": "path, video_id, size_bytes, modified_ns",
    "tags": "video_id, tag",
    "recordings": "video_id, recorded, camera, latitude, longitude",
    "segments": "segment_id, video_id, number, start_seconds, end_seconds, timestamps_seconds, shard, row, frames,"
    " pooled_shard, pooled_row",
    "captions": "caption_id, video_id, text, shard, row",
}
_UNCHANGED = "(video_id IS NULL OR video_id NOT IN (SELECT video_id FROM overlay.changed_videos))"
_KEPT = {
    "captions": " AND ".join(
        [_UNCHANGED, sql.within("caption_id NOT", "SELECT caption_id FROM overlay.changed_captions")]
    )
}
_LAYERS = (("main", "v.video_id NOT IN (SELECT video_id FROM overlay.changed_videos)"), ("overlay", "1"))
_CAPTION_PAGE = """
SELECT caption_id, video_id, text FROM searchable_captions ORDER BY caption_id LIMIT ? OFFSET ?
"""
_CAPTION_PAGE_OF_VIDEO = """
SELECT caption_id, video_id, text FROM searchable_captions WHERE video_id = ? ORDER BY caption_id LIMIT ? OFFSET ?
"""
_SEGMENT_WINDOWS = "segment_id, video_id, number, start_seconds, end_seconds, timestamps_seconds"
# The first catalogues had no titles.
_NO_TITLES = "CREATE TEMP TABLE titles (video_id TEXT PRIMARY KEY, title TEXT NOT NULL)"
# Nor was it known when videos were recorded: then the time of the file counts, as for a video that does not say.
_NO_RECORDINGS = """
SELECT video_id, min(modified_ns) / 1e9 AS recorded, NULL AS camera, NULL AS latitude, NULL AS longitude
FROM main.locations WHERE video_id IN (SELECT video_id FROM main.videos WHERE state = 'indexed')
    AND modified_ns > 0 AND path NOT LIKE '%://%' AND path NOT LIKE '%.tar%!%' GROUP BY video_id
"""
_VIDEO = """
SELECT video_id, duration_seconds, width, height, size_bytes, state, reason,
    (SELECT title FROM titles t WHERE t.video_id = v.video_id),
    (SELECT r.recorded FROM recordings r WHERE r.video_id = v.video_id),
    (SELECT r.camera FROM recordings r WHERE r.video_id = v.video_id),
    (SELECT r.latitude FROM recordings r WHERE r.video_id = v.video_id),
    (SELECT r.longitude FROM recordings r WHERE r.video_id = v.video_id)
FROM videos v
"""
_TITLE = """contains(?, (SELECT title FROM titles t WHERE t.video_id = v.video_id),
    (SELECT min(path) FROM locations l WHERE l.video_id = v.video_id))"""
_TITLE_KEY = """title_key((SELECT title FROM titles t WHERE t.video_id = v.video_id),
    (SELECT min(path) FROM locations l WHERE l.video_id = v.video_id), v.video_id)"""
# Ids of segments are given in the order in which videos are committed, and never twice (AUTOINCREMENT).
_NEWEST = "(SELECT s.segment_id FROM segments s WHERE s.video_id = v.video_id ORDER BY s.number LIMIT 1)"
_ORDERS: dict[VideoOrder, str] = {
    "id": "",
    "newest": f"{_NEWEST} DESC NULLS LAST, ",
    "recorded": "(SELECT r.recorded FROM recordings r WHERE r.video_id = v.video_id) DESC NULLS LAST, ",
    "title": f"{_TITLE_KEY}, ",
    "longest": "v.duration_seconds DESC NULLS LAST, ",
    "shortest": "v.duration_seconds ASC NULLS LAST, ",
}

_VARIABLES = 500
"""Ids in one statement; SQLite's lowest compiled-in limit of variables is 999."""


class Snapshot:
    """Reads from one catalogue copy, with one connection for each thread that asks.

    The file is opened at once and held: threads that ask only after it was deleted take turns with that connection.
    (``/proc/self/fd`` would not do: SQLite resolves links, to a name that is gone.) Raises ``Damaged`` if it is
    gone already.
    """

    def __init__(self, path: Path, overlay: bytes | None = None) -> None:
        self._path = path
        self._store = path.absolute().parents[2]  # STORE/generations/NAME/FILE
        self._overlay = overlay
        self._local = threading.local()
        self._lock = threading.Lock()
        self._closed = False
        self._held = self._opened()
        self._held_is_prepared = False
        self._connections = [self._held]

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
        """The place of the features of every segment: ``SEGMENT_PLACES`` records in ascending id."""
        return self._array(
            "SELECT segment_id, row, pooled_row, shard, pooled_shard, frames FROM segments ORDER BY segment_id",
            SEGMENT_PLACES,
        )

    def caption_places(self) -> Places:
        """The place of the features of every searchable caption: ``CAPTION_PLACES`` records in ascending id."""
        return self._array(
            "SELECT caption_id, row, shard FROM searchable_captions ORDER BY caption_id",
            CAPTION_PLACES,
        )

    def segments(self, ids: Sequence[int]) -> list[Segment]:
        """The segments with these ids, in this order. Raises ``KeyError`` for an id that does not exist."""
        rows = self._by_ids("SELECT * FROM segment_windows WHERE segment_id IN", ids)
        found = {row[0]: _segment(row) for row in rows}
        return [_existing(found, number, "segment") for number in ids]

    def videos_of(self, ids: Sequence[int]) -> dict[int, str]:
        """The video of each of these segments, by the segment's id."""
        return dict(self._by_ids("SELECT segment_id, video_id FROM segments WHERE segment_id IN", ids))

    def newest_addition(self) -> int:
        """The highest id of a segment; 0 if there is none."""
        return self._value("SELECT ifnull(max(segment_id), 0) FROM segments")

    def videos_added_after(self, segment_id: int, limit: int) -> list[tuple[int, str]]:
        """Videos with segments whose id is higher, each with its highest, in that order."""
        query = """
            SELECT max(segment_id) AS newest, video_id FROM segments WHERE segment_id > ?
            GROUP BY video_id ORDER BY newest LIMIT ?
        """
        return [(int(newest), str(video_id)) for newest, video_id in self._rows(query, (segment_id, limit))]

    def segments_of(self, video_ids: Sequence[str]) -> dict[str, list[tuple[int, float, float]]]:
        """Id, start and end of every segment of these videos, in order; videos without segments are left out."""
        query = "SELECT video_id, segment_id, start_seconds, end_seconds FROM segments WHERE video_id IN"
        found: dict[str, list[tuple[int, float, float]]] = {}
        for video_id, *segment in sorted(self._by_ids(query, video_ids), key=lambda row: (row[0], row[2])):
            found.setdefault(video_id, []).append((segment[0], segment[1], segment[2]))
        return found

    def captions(self, ids: Sequence[int]) -> list[Caption]:
        """The captions with these ids, in this order. Raises ``KeyError`` for an id that does not exist."""
        rows = self._by_ids("SELECT caption_id, video_id, text FROM captions WHERE caption_id IN", ids)
        found = {row[0]: Caption(caption_id=row[0], video_id=row[1], text=row[2]) for row in rows}
        return [_existing(found, number, "caption") for number in ids]

    def video(self, video_id: str) -> Video | None:
        """One video, also one that failed; None if there is none with this id."""
        videos = self._videos("WHERE video_id = ?", (video_id,))
        return videos[0] if videos else None

    def list_videos(
        self,
        offset: int,
        limit: int,
        state: VideoState | None,
        tags: Sequence[str] = (),
        title: str | None = None,
        order: VideoOrder = "id",
    ) -> list[Video]:
        """A page of videos; see ``StoreReader.list_videos``."""
        if order == "newest" and state == "indexed" and not tags:
            page = self._newest(offset, limit, title)
            if len(page) == limit:  # else it is the last one, on which videos without segments come too
                return page
        where, values = _video_conditions(state, tags, title)
        tail = f"WHERE {where} ORDER BY {_ORDERS[order]}video_id LIMIT ? OFFSET ?"
        return self._videos(tail, (*values, limit, offset))

    def _newest(self, offset: int, limit: int, title: str | None) -> list[Video]:
        """The same by walking the segments from the last one on: what comes after the page is not looked at."""
        found: list[tuple[int, str]] = []
        for schema, left_out in _LAYERS if self._overlay is not None else _LAYERS[:1]:
            where, values = _video_conditions("indexed", (), title, schema)
            first = sql.select("f.segment_id", f"{sql.table('segments', schema)} f", "f.video_id = v.video_id")
            conditions = [where, f"s.segment_id = ({first} ORDER BY f.number LIMIT 1)"]
            if self._overlay is not None:
                conditions.append(left_out)
            # The order of a CROSS JOIN is kept: segments are the outer loop.
            source = f"{sql.table('segments', schema)} s CROSS JOIN {sql.table('videos', schema)} v USING (video_id)"
            query = sql.select("s.segment_id, v.video_id", source, sql.all_of(conditions))
            found += self._rows(f"{query} ORDER BY s.segment_id DESC LIMIT ?", (*values, offset + limit))
        wanted = [video_id for _, video_id in sorted(found, reverse=True)[offset : offset + limit]]
        videos = {row[0]: row for row in self._by_ids(f"{_VIDEO} WHERE v.video_id IN", wanted)}
        return [self._video(videos[video_id]) for video_id in wanted]

    def count_videos(self, state: VideoState | None, tags: Sequence[str] = (), title: str | None = None) -> int:
        """How many videos ``list_videos`` would list in all."""
        where, values = _video_conditions(state, tags, title)
        return self._value(sql.select("count(*)", "videos v", where), values)

    def list_captions(self, offset: int, limit: int, video_id: str | None) -> list[Caption]:
        """A page of the searchable captions in the order of their ids, of one video or of all."""
        if video_id is None:
            rows = self._rows(_CAPTION_PAGE, (limit, offset))
        else:
            rows = self._rows(_CAPTION_PAGE_OF_VIDEO, (video_id, limit, offset))
        return [Caption(caption_id=c, video_id=v, text=t) for c, v, t in rows]

    def count_captions(self, video_id: str) -> int:
        """How many searchable captions a video has."""
        return self._value("SELECT count(*) FROM searchable_captions WHERE video_id = ?", (video_id,))

    def select_segments(self, wanted: Wanted) -> IdArray:
        """Ids, ascending, of the segments that ``wanted`` lets through, apart from its exceptions."""
        found = []
        for schema, left_out in _LAYERS if self._overlay is not None else _LAYERS[:1]:
            # Layer by layer: SQLite would build each view as a whole to join them.
            where, values = _video_conditions("indexed", wanted.tags, None, schema)
            conditions = [where] if self._overlay is None else [where, left_out]
            for condition, bound in self._conditions(wanted, schema):
                conditions.append(condition)
                values += bound
            layer = f"{sql.table('segments', schema)} JOIN {sql.table('videos', schema)} v USING (video_id)"
            query = sql.select("segment_id", layer, " AND ".join(conditions))
            if wanted.video_ids is None:
                found += self._rows(query, values)
            else:
                found += self._by_ids(f"{query} AND video_id IN", wanted.video_ids, values)
        return np.unique(np.array([row[0] for row in found], dtype=np.int64))

    def _conditions(self, wanted: Wanted, schema: str) -> Iterator[tuple[str, list[object]]]:
        """Conditions on a video ``v`` other than its tags, each with its values."""
        if wanted.min_seconds is not None:
            yield "v.duration_seconds >= ?", [wanted.min_seconds]
        if wanted.max_seconds is not None:
            yield "v.duration_seconds <= ?", [wanted.max_seconds]
        if wanted.min_height is not None:
            yield "min(v.width, v.height) >= ?", [wanted.min_height]
        for condition, bound in (
            ("r.recorded >= ?", wanted.recorded_from),
            ("r.recorded < ?", wanted.recorded_until),
            ("contains_text(?, r.camera)", None if wanted.camera is None else wanted.camera.casefold()),
        ):
            if bound is not None:
                recordings = sql.table("recordings", schema) if self._knows(schema) else f"({_NO_RECORDINGS})"
                yield sql.within("v.video_id", sql.select("r.video_id", f"{recordings} r", condition)), [bound]
        if wanted.folder is not None:
            places = f"{sql.table('locations', schema)} l"
            inside = "l.path = ? OR (l.path >= ? AND l.path < ?)"  # a range, so that the index of paths serves
            folder = wanted.folder.rstrip("/") or "/"
            below = folder if folder == "/" else f"{folder}/"
            bounds: list[object] = [folder, below, below[:-1] + chr(ord("/") + 1)]
            yield sql.within("v.video_id", sql.select("l.video_id", places, inside)), bounds

    def filter_fields(self, ids: Sequence[int]) -> list[tuple[str, float, tuple[str, ...]]]:
        """Video id, duration and tags of segments; see ``StoreReader.filter_fields``."""
        video_of = dict(self._by_ids("SELECT segment_id, video_id FROM segments WHERE segment_id IN", ids))
        videos = sorted(set(video_of.values()))
        seconds = dict(self._by_ids("SELECT video_id, duration_seconds FROM videos WHERE video_id IN", videos))
        tags: dict[str, list[str]] = {video_id: [] for video_id in videos}
        for video_id, tag in self._by_ids("SELECT video_id, tag FROM tags WHERE video_id IN", videos):
            tags[video_id].append(tag)
        named = [_existing(video_of, number, "segment") for number in ids]
        return [(video_id, float(seconds[video_id]), tuple(sorted(tags[video_id]))) for video_id in named]

    def _knows(self, schema: str) -> bool:
        """Whether a layer has the table of recordings; the catalogue's copy of an earlier program has not."""
        return schema == "overlay" or self._copy_knows

    @cached_property
    def _copy_knows(self) -> bool:
        return bool(self._value("SELECT count(*) FROM main.sqlite_schema WHERE name = 'recordings'"))

    def caption_ids_of(self, video_ids: Sequence[str]) -> IdArray:
        """Ids, ascending, of all captions of some videos."""
        rows = self._by_ids("SELECT caption_id FROM captions WHERE video_id IN", video_ids)
        return np.unique(np.array([row[0] for row in rows], dtype=np.int64))

    def _videos(self, tail: str, values: Sequence[object]) -> list[Video]:
        return [self._video(row) for row in self._rows(f"{_VIDEO} {tail}", values)]

    def _video(self, row: Sequence[Any]) -> Video:
        video_id, duration, width, height, size, state, reason, title, recorded, camera, latitude, longitude = row

        def select(query: str) -> list[tuple[Any, ...]]:
            return self._rows(query, (video_id,))

        names = select("SELECT path FROM locations WHERE video_id = ? ORDER BY path")
        paths = tuple(media.resolved(self._store, name, video_id) for (name,) in names)
        segments = select("SELECT * FROM segment_windows WHERE video_id = ? ORDER BY number")
        captions = select("SELECT caption_id, text FROM captions WHERE video_id = ? ORDER BY caption_id")
        return Video(
            video_id=video_id,
            title=title_of(title, paths[0] if paths else None, video_id),
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
            recording=Recording(recorded_seconds=recorded, camera=camera, latitude=latitude, longitude=longitude),
        )

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            with self._lock:
                if self._closed:
                    raise ValueError("this reader was closed; open the store again")
                connection = self._local.connection = self._next()
        return connection

    def _next(self) -> sqlite3.Connection:
        """A connection for one more thread."""
        try:
            connection = self._opened()
        except Damaged:
            if not self._held_is_prepared:
                _prepare(self._held, self._overlay)
                self._held_is_prepared = True
            return self._held
        self._connections.append(connection)
        _prepare(connection, self._overlay)
        return connection

    def _opened(self) -> sqlite3.Connection:
        uri = database_uri(self._path, "mode=ro&immutable=1")
        try:
            # check_same_thread off: close() is called from one thread for the connections of all
            return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        except sqlite3.OperationalError as error:
            if self._path.exists():
                raise
            raise Damaged(f"{self._path} is missing; run `emcl index rebuild`") from error

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        connection = self._connection()
        if connection is not self._held:
            return connection.execute(query, values).fetchall()
        with self._lock:  # SQLite's own is not enough: it can wait for a thread that waits for Python, for ``contains``
            return connection.execute(query, values).fetchall()

    def _value(self, query: str, values: Sequence[object] = ()) -> int:
        return int(self._rows(query, values)[0][0])

    def _array(self, query: str, dtype: np.dtype[np.void]) -> Places:
        return np.fromiter(self._connection().execute(query), dtype=dtype)  # for publishing: the file is there

    def _by_ids(
        self, query: str, ids: Sequence[int] | Sequence[str], values: Sequence[object] = ()
    ) -> list[tuple[Any, ...]]:
        rows = []
        for start in range(0, len(ids), _VARIABLES):
            part = ids[start : start + _VARIABLES]
            rows += self._rows(f"{query} {sql.marks(len(part))}", (*values, *part))
        return rows


def title_of(title: str | None, path: str | None, video_id: str) -> str:
    """What a video is called: the title it was given, else the name of its file without the ending."""
    return title or (Path(path).stem if path else video_id[:12])


def _video_conditions(
    state: VideoState | None, tags: Sequence[str], title: str | None, schema: str = ""
) -> tuple[str, list[object]]:
    tagged = sql.select("t.video_id", f"{sql.table('tags', schema)} t", "t.tag = ?")
    conditions, values = list[str](), list[object]()
    if state is not None:
        conditions.append("v.state = ?")
        values.append(state)
    for tag in dict.fromkeys(tags):
        conditions.append(sql.within("v.video_id", tagged))
        values.append(tag)
    if title is not None:
        conditions.append(_TITLE)
        values.append(title.casefold())
    return sql.all_of(conditions), values


def _contains(wanted: str, title: str | None, path: str | None) -> bool:
    return wanted in title_of(title, path, "").casefold()


def _contains_text(wanted: str, text: str | None) -> bool:
    return text is not None and wanted in text.casefold()


def order_of_title(title: str | None, path: str | None, video_id: str) -> str:
    """Sorts titles as people do: whatever their case, and numbers in them by value (to 20 digits)."""
    name = title_of(title, path, video_id).casefold()
    return re.sub(r"[0-9]+", lambda digits: digits[0].lstrip("0").rjust(20, "0"), name)


def _prepare(connection: sqlite3.Connection, overlay: bytes | None) -> None:
    """Make every table readable under its own name: through a view where an overlay covers it."""
    connection.create_function("contains", 3, _contains, deterministic=True)
    connection.create_function("contains_text", 2, _contains_text, deterministic=True)
    connection.create_function("title_key", 3, order_of_title, deterministic=True)
    tables = {row[0] for row in connection.execute("SELECT name FROM main.sqlite_schema")}
    if overlay is None:
        if "titles" not in tables:
            connection.execute(_NO_TITLES)
        if "recordings" not in tables:
            connection.execute(sql.view("recordings", _NO_RECORDINGS))
        return
    connection.execute("ATTACH ':memory:' AS overlay")
    connection.deserialize(overlay, name="overlay")
    for table, columns in _COLUMNS.items():
        kept = sql.select(columns, sql.table(table, "main"), _KEPT.get(table, _UNCHANGED))
        changed = sql.select(columns, sql.table(table, "overlay"))
        if table == "recordings" and table not in tables:
            kept = sql.select(columns, f"({_NO_RECORDINGS})", _UNCHANGED)
            connection.execute(sql.view(table, f"{kept} UNION ALL {changed}"))
            continue
        connection.execute(sql.view(table, f"{kept} UNION ALL {changed}" if table in tables else changed))
    connection.execute(sql.view("segment_windows", sql.select(_SEGMENT_WINDOWS, "temp.segments")))
    connection.execute(
        "CREATE TEMP VIEW searchable_captions AS SELECT * FROM temp.captions WHERE video_id IS NULL"
        " OR video_id IN (SELECT video_id FROM temp.videos WHERE state = 'indexed')"
    )


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
