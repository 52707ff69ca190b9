"""Statements built from parts: what they say, and that lists, filters and counts of the catalogue use indices."""

import sqlite3

import pytest
from index_support import FakeEncoder, fill, location_of, settings

from indexer.store import sql
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter


@pytest.fixture
def reader_and_plans(tmp_path, monkeypatch):
    """A reader of a small store, and a function that returns the query plan of each statement of a call."""
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        fill(writer, range(6))
        writer.publish(FakeEncoder())
    connections, connect = [], sqlite3.connect

    def recorded(*args, **options):
        connections.append(connect(*args, **options))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", recorded)
    with StoreReader.open(tmp_path / "s") as reader:
        reader.list_videos(limit=1)  # the thread's own connection

        def plans(call):
            statements = []
            for connection in connections[-2:]:
                connection.set_trace_callback(statements.append)
            call()
            for connection in connections[-2:]:
                connection.set_trace_callback(None)
            assert statements
            explained = [connections[-1].execute(f"EXPLAIN QUERY PLAN {text}").fetchall() for text in statements]
            return ["; ".join(row[3] for row in rows) for rows in explained]

        yield reader, plans


def test_pages_of_videos_come_in_the_order_of_their_ids_without_sorting(reader_and_plans):
    reader, plans = reader_and_plans
    for plan in plans(lambda: reader.list_videos(0, 3, state=None)):
        assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("title", [None, "v"])
def test_a_page_of_the_newest_videos_walks_the_segments_from_the_last_one_on(reader_and_plans, title):
    reader, plans = reader_and_plans
    plan = plans(lambda: reader.list_videos(0, 3, state="indexed", title=title, order="newest"))[0]
    assert plan.startswith("SCAN s;")
    assert "SEARCH v USING" in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("changed", [False, True], ids=["generation", "overlay"])
def test_pages_of_the_newest_videos_are_those_of_all_videos_sorted(tmp_path, changed):
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        fill(writer, range(6))
        writer.publish(FakeEncoder())
        if changed:
            writer.remove_videos([location_of(4).video_id])
            writer.edit_video(location_of(2).video_id, title="renamed")
            fill(writer, range(6, 9))
    with StoreReader.open(tmp_path / "s") as reader:
        assert (reader.overlay_rows > 0) == changed
        everything = reader.list_videos(0, 100, state="indexed")
        wanted = sorted(everything, key=lambda video: -video.segments[0].segment_id)
        assert len(wanted) == (8 if changed else 6)
        for offset in range(len(wanted) + 1):
            for limit in (1, 3, 100):
                page = reader.list_videos(offset, limit, state="indexed", order="newest")
                assert [video.video_id for video in page] == [
                    video.video_id for video in wanted[offset : offset + limit]
                ]
        named = reader.list_videos(0, 1, state="indexed", title="renamed" if changed else "", order="newest")
        assert named[0].video_id == (location_of(2).video_id if changed else wanted[0].video_id)


@pytest.mark.parametrize("state", ["indexed", "failed", "pending"])
def test_videos_of_a_state_are_found_by_its_index(reader_and_plans, state):
    reader, plans = reader_and_plans
    page = plans(lambda: reader.list_videos(0, 3, state=state))[0]
    assert "videos_by_state (state=?)" in page
    assert "TEMP B-TREE" not in page


def test_counts_that_the_manifest_does_not_have_use_the_index_too(reader_and_plans):
    reader, plans = reader_and_plans
    assert "videos_by_state (state=?)" in plans(lambda: reader.count_videos(state="pending"))[0]


def test_filters_by_tag_use_the_index_of_tags(reader_and_plans):
    reader, plans = reader_and_plans
    for call in (
        lambda: reader.count_videos(state=None, tags=["even"]),
        lambda: reader.list_videos(0, 3, state=None, tags=["even"]),
        lambda: reader.select_segments(tags=["even"]),
    ):
        assert "tags_by_tag (tag=?)" in plans(call)[0]


def test_what_belongs_to_a_video_is_found_by_its_id(reader_and_plans):
    reader, plans = reader_and_plans
    for plan in plans(lambda: reader.video(location_of(2).video_id)):
        assert "SCAN" not in plan


def test_segments_and_captions_are_found_by_their_ids(reader_and_plans):
    reader, plans = reader_and_plans
    found = plans(lambda: (reader.segments([1, 2]), reader.captions([1])))
    assert len(found) == 2
    assert all("INTEGER PRIMARY KEY (rowid=?)" in plan for plan in found)


def test_statements_are_joined_from_checked_names():
    assert sql.select("a, b", sql.table("videos", "base"), "a = ?") == "SELECT a, b FROM base.videos WHERE a = ?"
    assert sql.insert("videos", "SELECT 1", ignore=True) == "INSERT OR IGNORE INTO videos SELECT 1"
    assert sql.update("jobs", "state = ?", "job_id = ?") == "UPDATE jobs SET state = ? WHERE job_id = ?"
    assert sql.marks(3) == "(?, ?, ?)"
    for name in ("videos; DROP TABLE videos", "Videos", "a.b.c", ""):
        with pytest.raises(ValueError, match="is not the name of a table"):
            sql.table(name)


def test_what_differs_between_two_queries():
    connection = sqlite3.connect(":memory:")
    one, two = "SELECT 1 UNION SELECT 2", "SELECT 2 UNION SELECT 3"
    queries = [sql.select("*", f"({query})") for query in (one, two)]
    assert sorted(connection.execute(sql.differing(*queries)).fetchall()) == [(1,), (3,)]
    assert connection.execute(sql.exists(sql.differing(*queries))).fetchone() == (1,)
    assert connection.execute(sql.exists(sql.differing(queries[0], queries[0]))).fetchone() == (0,)
