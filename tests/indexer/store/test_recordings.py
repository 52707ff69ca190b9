"""Filters by time of recording, folder, camera and resolution: published, changed since, and in earlier stores."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from index_support import FakeEncoder, location_of, settings, video_of

from indexer.library import Wanted
from indexer.store import generation, schema
from indexer.store.merge import merge
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.video.recording import Recording

DAY = 86_400.0
RECORDINGS = {
    0: Recording(recorded_seconds=100 * DAY, camera="Canon EOS R5"),
    1: Recording(recorded_seconds=200 * DAY, camera="Apple iPhone 15", latitude=52.5, longitude=13.4),
    2: Recording(recorded_seconds=300 * DAY),
    3: Recording(),  # the time of its file counts
}
SIZES = {0: (3840, 2160), 1: (1080, 1920), 2: (1280, 720), 3: (320, 240)}
PATHS = {0: "/films/2024/a.mp4", 1: "/films/2024/b/c.mp4", 2: "/films/20240/d.mp4", 3: "/other/e.mp4"}


def recorded(writer: StoreWriter, numbers: list[int]) -> None:
    """Put videos of known recordings, sizes and places into a store."""
    for number in numbers:
        writer.add_locations([replace(location_of(number), path=PATHS[number], modified_ns=int(400 * DAY * 1e9))])
        width, height = SIZES[number]
        video = replace(video_of(number), width=width, height=height, recording=RECORDINGS[number])
        assert writer.add_videos([video]) == {}


@pytest.fixture(params=["published", "overlay"])
def reader(request: pytest.FixtureRequest, tmp_path: Path):
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        recorded(writer, [0, 1] if request.param == "overlay" else [0, 1, 2, 3])
        writer.publish(FakeEncoder())
        if request.param == "overlay":
            recorded(writer, [2, 3])
    with StoreReader.open(tmp_path / "s") as opened:
        assert (opened.overlay_rows > 0) == (request.param == "overlay")
        yield opened


def numbers_of(reader: StoreReader, **wanted) -> list[int]:
    """The videos that a filter lets through, by their numbers."""
    segments = reader.segments(reader.matching(Wanted(**wanted)).tolist())
    return sorted({int(segment.video_id, 16) for segment in segments})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"recorded_from": 200 * DAY}, [1, 2, 3]),
        ({"recorded_until": 200 * DAY}, [0]),
        ({"recorded_from": 150 * DAY, "recorded_until": 350 * DAY}, [1, 2]),
        ({"recorded_from": 399 * DAY, "recorded_until": 401 * DAY}, [3]),
        ({"camera": "eos"}, [0]),
        ({"camera": "APPLE iphone"}, [1]),
        ({"camera": "%"}, []),
        ({"min_height": 1080}, [0, 1]),  # upright ones too
        ({"min_height": 2160}, [0]),
        ({"folder": "/films/2024"}, [0, 1]),
        ({"folder": "/films/2024/"}, [0, 1]),
        ({"folder": "/films"}, [0, 1, 2]),
        ({"folder": "/films/2024/a.mp4"}, [0]),
        ({"folder": "/"}, [0, 1, 2, 3]),
        ({"folder": "/films/20"}, []),
        ({"folder": "/films/_024"}, []),
        ({"folder": "/films", "min_height": 720, "recorded_from": 150 * DAY}, [1, 2]),
        ({"camera": "eos", "video_ids": (f"{1:064x}",)}, []),
    ],
)
def test_filters(reader: StoreReader, wanted, expected):
    assert numbers_of(reader, **wanted) == expected


def test_videos_know_and_are_listed_by_their_recording(reader: StoreReader):
    listed = reader.list_videos(0, 10, state="indexed", order="recorded")
    assert [int(video.video_id, 16) for video in listed] == [3, 2, 1, 0]
    assert listed[2].recording == RECORDINGS[1]
    assert listed[0].recording == Recording(recorded_seconds=400 * DAY)


def test_merging_keeps_recordings(tmp_path: Path):
    for name, numbers in (("a", [0, 1]), ("b", [2, 3])):
        with StoreWriter.open(tmp_path / name, settings=settings()) as writer:
            recorded(writer, numbers)
            writer.publish(FakeEncoder())
    with StoreWriter.open(tmp_path / "m", settings=settings()) as writer:
        merge(writer, [tmp_path / "a", tmp_path / "b"])
        writer.publish(FakeEncoder())
    with StoreReader.open(tmp_path / "m") as merged:
        assert numbers_of(merged, camera="eos") == [0]
        assert numbers_of(merged, recorded_from=399 * DAY) == [3]


@pytest.mark.parametrize("changed", [False, True])
def test_an_earlier_store_has_the_times_of_its_files(tmp_path: Path, changed: bool):
    store = tmp_path / "s"
    with StoreWriter.open(store, settings=settings()) as writer:
        recorded(writer, [0, 1])
        manifest = writer.publish(FakeEncoder())
        if changed:
            recorded(writer, [2])
    folder = store / "generations" / manifest.generation
    for path in (store / "catalogue.db", folder / "snapshot.db"):
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            triggers = "SELECT name FROM sqlite_schema WHERE name LIKE 'log_recordings_%'"
            for (name,) in database.execute(triggers).fetchall():
                database.execute(f"DROP TRIGGER {name}")
            database.execute("DROP TABLE recordings")
            database.execute("DROP TABLE read_recordings")
            database.execute(f"PRAGMA user_version = {schema.WITH_RECORDINGS - 1}")
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    files = {**manifest.files, "snapshot.db": generation.check_of(folder / "snapshot.db")}
    (folder / "manifest.json").write_text(manifest.model_copy(update={"files": files}).to_json())
    everything = [0, 1, 2] if changed else [0, 1]

    def check() -> None:
        with StoreReader.open(store) as reader:
            assert numbers_of(reader, recorded_from=399 * DAY, recorded_until=401 * DAY) == everything
            assert numbers_of(reader, camera="eos") == []
            assert numbers_of(reader, folder="/films/2024") == [0, 1]
            assert reader.list_videos(0, 1, order="recorded")[0].recording.recorded_seconds == 400 * DAY

    check()
    StoreWriter.open(store).close()  # migrates
    check()


def test_versions_of_members_and_urls_are_no_times(tmp_path: Path):
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        paths = ("/films/a.tar!clip.mp4", "s3://films/clip.mp4", "/films/Party!.mp4", "/films/unknown.mp4")
        for number, path in enumerate(paths):
            modified_ns = -1 if "unknown" in path else round(DAY * 1e9)
            writer.add_locations([replace(location_of(number), path=path, modified_ns=modified_ns)])
            assert writer.add_videos([replace(video_of(number), recording=Recording())]) == {}
        times = [writer.catalogue.recording(location_of(number).video_id).recorded_seconds for number in range(4)]
    assert times == [None, None, DAY, None]
