"""Videos that an earlier version indexed are asked once when and with what they were recorded."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from index_support import index

from indexer.build import recordings
from indexer.build.progress import Progress
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter

FILE_TIME = 1_500_000_000
FILMED = datetime(2019, 7, 1, 10, 30, tzinfo=UTC).timestamp()


def write(path: Path, level: int, metadata: dict[str, str]) -> None:
    import av

    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for part in range(8):
            picture = np.full((32, 32, 3), level + part, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    os.utime(path, (FILE_TIME, FILE_TIME))


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A store whose two videos were never asked; returns the folder of the videos."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "phone.mov", 0, {"creation_time": "2019-07-01T10:30:00Z", "com.apple.quicktime.model": "iPhone 15"})
    write(folder / "silent.avi", 100, {})
    index(tmp_path / "s", folder)
    with StoreWriter.open(tmp_path / "s") as writer, writer.catalogue.transaction():
        writer.catalogue.connection.execute("DELETE FROM read_recordings")
        writer.catalogue.connection.execute("UPDATE recordings SET recorded = 1, camera = NULL")
    return folder


def facts(store: Path) -> list[tuple[str, float | None, str | None]]:
    with StoreReader.open(store) as reader:
        videos = reader.list_videos(order="title")
        return [(video.title, video.recording.recorded_seconds, video.recording.camera) for video in videos]


EXPECTED = [("phone", FILMED, "iPhone 15"), ("silent", FILE_TIME, None)]


def test_indexing_again_asks_videos_that_were_not_asked(earlier: Path, tmp_path: Path, monkeypatch):
    store = tmp_path / "s"
    assert facts(store) == [("phone", 1, None), ("silent", 1, None)]
    index(store, earlier)
    assert facts(store) == EXPECTED
    monkeypatch.setattr(recordings, "_new_pool", pytest.fail)  # nothing is left to be read
    index(store, earlier)
    assert facts(store) == EXPECTED


def test_a_file_that_cannot_be_read_says_nothing(earlier: Path, tmp_path: Path):
    store = tmp_path / "s"
    (earlier / "phone.mov").unlink()
    with StoreWriter.open(store) as writer:
        locations = writer.catalogue.locations()
        assert recordings.fill_recordings(writer, locations, Progress()) == 2
        assert recordings.fill_recordings(writer, locations, Progress()) == 0
    assert facts(store) == [("phone", FILE_TIME, None), ("silent", FILE_TIME, None)]


def test_a_process_that_dies_costs_only_its_file(earlier: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(recordings, "read_recording_of", _die)
    with StoreWriter.open(tmp_path / "s") as writer:
        assert recordings.fill_recordings(writer, writer.catalogue.locations(), Progress()) == 2
    assert facts(tmp_path / "s") == [("phone", FILE_TIME, None), ("silent", FILE_TIME, None)]


def _die(location: object) -> None:
    os._exit(1)
