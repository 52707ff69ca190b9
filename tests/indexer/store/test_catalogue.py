"""The catalogue: migrations, transactions, states, and refusal of what it does not understand."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import NewerFormat, NotAStore, SourceError
from indexer.locations import Location
from indexer.store import schema
from indexer.store.catalogue import Catalogue, read_settings
from indexer.store.records import CaptionRow, SegmentRow, VideoRow
from indexer.store.shards import Place


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    with closing(Catalogue.open(tmp_path / "catalogue.db", create=True)) as opened:
        yield opened


def place(row: int = 0, rows: int = 1) -> Place:
    return Place(shard=0, row=row, rows=rows, crc32=1)


def location(path: str, video_id: str) -> Location:
    return Location(path=path, video_id=video_id, size_bytes=3, modified_ns=4)


def video(video_id: str, segments: int = 1) -> VideoRow:
    rows = [
        SegmentRow(
            number=n,
            start_seconds=n,
            end_seconds=n + 1,
            timestamps_seconds=np.array([float(n)]),
            frames=place(n),
            pooled=place(n),
        )
        for n in range(segments)
    ]
    return VideoRow(video_id=video_id, duration_seconds=2.0, width=4, height=3, reason=None, segments=rows)


def test_a_catalogue_made_by_the_first_version_reaches_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "catalogue.db"
    Catalogue.open(path, create=True).close()
    added = "CREATE TABLE added (x INTEGER) STRICT"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    with closing(Catalogue.open(path)) as opened:
        assert opened.connection.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
        assert opened.connection.execute("SELECT count(*) FROM added").fetchone()[0] == 0


def test_a_newer_catalogue_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.db"
    with closing(Catalogue.open(path, create=True)) as opened:
        opened.connection.execute("PRAGMA user_version = 99")
    for opening in (Catalogue.open, Catalogue.open_readonly, read_settings):
        with pytest.raises(NewerFormat, match=r"catalogue format 99, this program reads up to \d"):
            opening(path)


def test_other_databases_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAStore, match="emcl index build"):
        Catalogue.open(tmp_path / "nothing.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(NotAStore, match="another program"):
        Catalogue.open(tmp_path / "other.db", create=True)
    (tmp_path / "text.db").write_text("this is a text, and longer than a hundred bytes " * 5)
    with pytest.raises(NotAStore, match="not a database"):
        Catalogue.open(tmp_path / "text.db")


def test_writes_are_durable_at_commit(catalogue: Catalogue) -> None:
    assert catalogue.connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert catalogue.connection.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_a_transaction_that_fails_changes_nothing(catalogue: Catalogue) -> None:
    def fail() -> None:
        with catalogue.transaction():
            catalogue.add_location(location("/a", "v"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert catalogue.locations() == []
    assert catalogue.revision == 0


def test_a_video_goes_from_pending_to_indexed_with_its_segments(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
    assert catalogue.states() == {"v": "pending"}
    assert not catalogue.has_content()
    with catalogue.transaction():
        catalogue.add_video(video("v", 2))
    assert catalogue.states() == {"v": "indexed"}
    assert catalogue.row_counts() == (2, 0)
    assert catalogue.has_content()
    assert catalogue.revision == 2


def test_an_indexed_video_is_never_committed_twice(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
        catalogue.add_video(video("v"))
    with pytest.raises(AssertionError, match="already indexed"), catalogue.transaction():
        catalogue.add_video(video("v"))
    assert catalogue.row_counts() == (1, 0)


def test_a_failed_video_keeps_its_reason_and_can_be_indexed_later(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
        catalogue.fail_video("v", "broken")
    assert catalogue.failure("v") == "broken"
    with catalogue.transaction():
        catalogue.add_video(video("v"))
    assert catalogue.failure("v") is None


def test_an_indexed_video_does_not_fail_afterwards(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
        catalogue.add_video(video("v"))
        catalogue.fail_video("v", "late")
    assert catalogue.states() == {"v": "indexed"}


def test_a_caption_is_kept_once_also_without_a_video(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
        for _ in range(2):
            catalogue.add_captions([CaptionRow(video_id=v, text="x", place=place()) for v in ("v", None)])
    assert catalogue.has_caption("v", "x")
    assert catalogue.has_caption(None, "x")
    assert not catalogue.has_caption("v", "y")
    assert catalogue.row_counts() == (0, 2)


def test_removing_a_video_removes_what_hangs_on_it(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
        catalogue.add_video(video("v"))
        catalogue.add_captions([CaptionRow(video_id=v, text="x", place=place()) for v in ("v", None)])
        catalogue.add_tags([("v", "t")])
        assert catalogue.has_tag("v", "t")
        catalogue.remove_video("v")
    assert catalogue.locations() == []
    assert not catalogue.has_tag("v", "t")
    assert not catalogue.has_caption("v", "x")
    assert catalogue.has_caption(None, "x")
    assert catalogue.row_counts() == (0, 1)


def test_ids_are_never_given_to_something_else(catalogue: Catalogue) -> None:
    def add(video_id: str) -> int:
        with catalogue.transaction():
            catalogue.add_location(location(f"/{video_id}", video_id))
            catalogue.add_video(video(video_id))
        return catalogue.connection.execute("SELECT max(segment_id) FROM segments").fetchone()[0]

    first = add("v")
    with catalogue.transaction():
        catalogue.remove_video("v")
    assert add("w") > first


def test_two_paths_of_the_same_bytes_are_one_video(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
        catalogue.add_location(location("/b", "v"))
    assert catalogue.states() == {"v": "pending"}
    assert [summary["paths"] for summary in catalogue.summaries()] == [["/a", "/b"]]


def test_a_path_with_new_content_belongs_to_the_new_video(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
        catalogue.add_location(location("/a", "w"))
    assert {summary["video_id"]: summary["paths"] for summary in catalogue.summaries()} == {"v": [], "w": ["/a"]}


def test_an_inode_is_kept_with_its_path_and_is_no_change_of_the_video(catalogue: Catalogue) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/clips/a.mp4", "a" * 64))
    before = catalogue.connection.execute("SELECT * FROM changed_videos").fetchall()
    with catalogue.transaction():
        catalogue.add_location(replace(location("/clips/a.mp4", "a" * 64), inode=7))
    assert catalogue.connection.execute("SELECT * FROM changed_videos").fetchall() == before
    assert [place.inode for place in catalogue.locations()] == [7]
    with catalogue.transaction():
        catalogue.forget_locations(["/clips/a.mp4"])
    assert catalogue.connection.execute("SELECT count(*) FROM inodes").fetchone()[0] == 0


def test_a_catalogue_without_inodes_is_read_without_being_migrated(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.db"
    with closing(Catalogue.open(path, create=True)) as opened:
        with opened.transaction():
            opened.add_location(location("/clips/a.mp4", "a" * 64))
        opened.connection.executescript(
            "DROP TABLE cues; DROP TABLE transcripts; DROP TABLE recordings;"
            " DROP TABLE read_recordings; DROP TABLE inodes;"
            " DROP TABLE documents_fts; DROP TABLE documents; DROP TABLE document_counts;"
            " PRAGMA user_version = 5"
        )
    with closing(Catalogue.open_readonly(path)) as reader:
        assert [place.inode for place in reader.locations()] == [None]
    with closing(Catalogue.open(path)) as opened:
        assert [place.inode for place in opened.locations()] == [None]
        assert opened.connection.execute("SELECT count(*) FROM inodes").fetchone()[0] == 0


def test_videos_are_named_by_id_prefix_or_path(catalogue: Catalogue) -> None:
    ids = ["a" * 64, "abcdef00" + "0" * 56, "abcdef00" + "1" * 56]
    with catalogue.transaction():
        for number, video_id in enumerate(ids):
            catalogue.add_location(location(f"/clips/{number}.mp4", video_id))
    assert catalogue.find_videos(["/clips/1.mp4", "aaaaaaaa", ids[2]]) == [ids[1], ids[0], ids[2]]
    for name, reason in (("abcdef00", "names 2 videos"), ("aaaa", "names no video"), ("/nowhere", "names no video")):
        with pytest.raises(SourceError, match=reason):
            catalogue.find_videos([name])


def test_a_copy_holds_what_the_catalogue_held(catalogue: Catalogue, tmp_path: Path) -> None:
    with catalogue.transaction():
        catalogue.add_location(location("/a", "v"))
    catalogue.copy_to(tmp_path / "copy.db")
    with catalogue.transaction():
        catalogue.add_location(location("/b", "w"))
    with closing(Catalogue.open_readonly(tmp_path / "copy.db")) as copy:
        assert copy.states() == {"v": "pending"}
