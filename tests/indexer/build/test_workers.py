"""The decode workers: a file that crashes or hangs one costs only itself, and memory stays bounded."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from index_support import index, make_clip

from indexer.build import decode
from indexer.build.decode import DecodeSettings
from indexer.build.decode_pool import Reader, ReaderSettings, ReadResult
from indexer.errors import SourceError
from indexer.locations import Location
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from model.clip.preprocess import Preprocess
from model.config import SamplingConfig

# The decode workers. The functions are module-level, because they travel to the workers by name.


def crash(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(*_: object) -> None:
    threading.Event().wait()


def slow_memory(*_: object) -> None:
    raise MemoryError


def read(folder: Path, timeout_seconds: float, broken: Callable[..., None]) -> dict[str, str | None]:
    """Read all clips with ``broken`` in place of the decoder for every clip called 1.mp4."""
    sampling = SamplingConfig(sample_fps=4.0, max_frames=2)
    options = DecodeSettings(sampling=sampling, segment_seconds=10, preprocess=Preprocess.square(16))
    paths = sorted(folder.glob("?.mp4"))
    locations = [
        Location(path=str(p), video_id=p.name, size_bytes=p.stat().st_size, modified_ns=p.stat().st_mtime_ns)
        for p in paths
    ]
    with Reader(ReaderSettings(decode=options, workers=1, timeout_seconds=timeout_seconds)) as reader:
        submit = reader.submit
        schedule = reader.pool.schedule

        def submit_broken(task: object) -> object:
            if task.location.video_id != "1.mp4":
                return submit(task)
            return schedule(broken, timeout=timeout_seconds)

        reader.submit = submit_broken
        return {result.location.video_id: result.reason for result in reader.read(locations)}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (crash, "the decoder crashed on it (exit code -11)"),
        (hang, "decoding took longer than 4 s and was stopped"),
        (slow_memory, "MemoryError"),
    ],
)
def test_a_file_that_crashes_or_hangs_a_worker_costs_only_itself(
    clips: Path, broken: Callable[..., None], reason: str
) -> None:
    reasons = read(clips, 4.0, broken)
    assert reasons == {"0.mp4": None, "1.mp4": reason, "2.mp4": None, "3.mp4": None}


def test_a_file_that_changed_after_it_was_hashed_fails(clips: Path) -> None:
    path = clips / "0.mp4"
    location = Location(path=str(path), video_id="v", size_bytes=path.stat().st_size, modified_ns=1)
    with pytest.raises(SourceError, match="changed after it was hashed"):
        decode.check_unchanged(location)
    with pytest.raises(SourceError, match="cannot be read any more"):
        decode.check_unchanged(replace(location, path=str(clips / "gone.mp4")))


def test_what_cannot_be_read_of_a_video_is_noted(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips / "long.mp4"
    collect = Reader.collect

    def without_second_window(self: Reader, future: Future[object]) -> ReadResult:
        result = collect(self, future)
        if result.window is None or result.window.number != 1:
            return result
        return replace(result, segment=None, reason="no frame can be decoded")

    monkeypatch.setattr(Reader, "collect", without_second_window)
    report = index(tmp_path / "s", path)
    assert report.complete
    assert report.notes == [f"{path} was indexed in part: 1-2 s: no frame can be decoded"]
    with StoreReader.open(tmp_path / "s") as reader:
        (video,) = reader.list_videos()
        assert video.reason == "1-2 s: no frame can be decoded"
        assert [segment.number for segment in video.segments] == [0, 2, 3]
    assert verify(tmp_path / "s").problems == []


def test_a_long_video_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "long.mp4", 1, seconds=6)
    stat = path.stat()
    location = Location(path=str(path), video_id="v", size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns)
    options = DecodeSettings(
        sampling=SamplingConfig(sample_fps=4.0), segment_seconds=0.5, preprocess=Preprocess.square(16)
    )
    running = []
    with Reader(ReaderSettings(decode=options, workers=1)) as reader:
        submit = reader.submit
        reader.submit = lambda task: running.append(task) or submit(task)
        results = []
        for result in reader.read([location]):
            results.append(result)
            assert len(running) - len(results) <= 2
            time.sleep(0.01)
    assert sorted(0 if result.window is None else result.window.number for result in results) == list(range(12))
    assert all(result.segment is not None and len(result.segment.frames_FHWC) == 2 for result in results)
