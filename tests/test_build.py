"""Indexing runs over real files, with a fake encoder: what is found, cut, encoded, skipped, moved, failed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from index_support import DIM, FakeEncoder, make_clip, settings

from indexer import decode
from indexer.build import BuildReport, BuildRequest, build
from indexer.catalogue import Catalogue
from indexer.decode import DecodeSettings, windows_of
from indexer.errors import CaptionFileError, ModelMismatch, SourceError
from indexer.progress import Progress
from indexer.reader import Reader, ReaderSettings, ReadResult
from indexer.rows import Location
from indexer.store import StoreReader
from indexer.verify import verify
from indexer.writer import StoreWriter
from model.config import SamplingConfig


def index(store: Path, *paths: Path | str, encoder: FakeEncoder | None = None, **options: object) -> BuildReport:
    request = BuildRequest(paths=[str(path) for path in paths], **options)
    with StoreWriter.open(store, settings=settings()) as writer:
        return build(writer, encoder or FakeEncoder(), request, Progress())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        make_clip(folder / f"{number}.mp4", number, seconds=0.5)
    make_clip(folder / "long.mp4", 9, seconds=3.5)
    return folder


@pytest.fixture
def folder(clips: Path, tmp_path: Path) -> Path:
    target = tmp_path / "videos"
    target.mkdir()
    for path in clips.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def by_name(store: Path) -> dict[str, object]:
    with StoreReader.open(store) as reader:
        return {Path(video.path or "none").name: video for video in reader.list_videos(state=None)}


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0.0, [(0, 0.0)]),
        (3.0, [(0, 3.0)]),
        (30.0, [(0, 30.0)]),
        (36.0, [(0, 36.0)]),
        (37.5, [(0, 30), (30, 37.5)]),
        (60.0, [(0, 30), (30, 60)]),
        (66.0, [(0, 30), (30, 66.0)]),
        (95.0, [(0, 30), (30, 60), (60, 95.0)]),
        (98.0, [(0, 30), (30, 60), (60, 90), (90, 98.0)]),
    ],
)
def test_segments_cover_the_video_and_a_short_tail_joins(duration: float, expected: list[tuple[float, float]]) -> None:
    assert windows_of(duration, 30.0) == expected


def test_a_folder_is_indexed_and_a_long_video_becomes_segments(folder: Path, tmp_path: Path) -> None:
    report = index(tmp_path / "s", folder, workers=2)
    assert report.complete
    assert (report.found, report.indexed) == (5, 5)
    assert report.manifest is not None
    assert report.manifest.counts.segments == 4 + 4
    with StoreReader.open(tmp_path / "s") as reader:
        (video,) = (v for v in reader.list_videos() if v.path == str(folder / "long.mp4"))
        assert (video.width, video.height, video.state, video.reason) == (32, 32, "indexed", None)
        assert video.duration_seconds == pytest.approx(3.5, abs=0.01)
        windows = [(s.start_seconds, s.end_seconds) for s in video.segments]
        assert windows == [(0, 1), (1, 2), (2, 3), (3, pytest.approx(3.5, abs=0.01))]
        for segment in video.segments:
            assert (segment.timestamps_seconds >= segment.start_seconds).all()
            assert (segment.timestamps_seconds < segment.end_seconds).all()
            assert len(segment.timestamps_seconds) == (4 if segment.number < 3 else 2)
    assert verify(tmp_path / "s").problems == []


def test_features_are_those_of_the_decoded_frames(folder: Path, tmp_path: Path) -> None:
    from model.preprocess import resize_and_crop
    from model.video import decode as decode_video

    index(tmp_path / "s", folder)
    encoder = FakeEncoder()
    with StoreReader.open(tmp_path / "s") as reader:
        for video in reader.list_videos():
            for segment in video.segments:
                end = None if segment is video.segments[-1] else segment.end_seconds
                batch = decode_video(
                    video.path,
                    sampling=settings().sampling,
                    start_seconds=segment.start_seconds,
                    end_seconds=end,
                )
                frames = resize_and_crop(batch.frames, encoder.image_size)[None]
                mask = np.ones(frames.shape[:2], dtype=bool)
                expected = encoder.encode_videos(frames, mask)
                features, found_mask = reader.segment_features(np.array([segment.segment_id]))
                np.testing.assert_array_equal(features[found_mask], expected[0].astype(np.float16))
                np.testing.assert_array_equal(segment.timestamps_seconds, batch.timestamps_seconds)
                pooled = reader.segment_embeddings(np.array([segment.segment_id]))
                np.testing.assert_array_equal(pooled, encoder.pool(expected, mask))


def test_a_second_run_does_nothing_again(folder: Path, tmp_path: Path) -> None:
    first = index(tmp_path / "s", folder)
    encoder = FakeEncoder()
    second = index(tmp_path / "s", folder, encoder=encoder)
    assert (second.found, second.indexed, encoder.encoded_segments) == (5, 0, 0)
    assert second.manifest == first.manifest


def test_unreadable_files_are_recorded_and_never_stop_the_run(folder: Path, tmp_path: Path) -> None:
    (folder / "text.mp4").write_text("this is a text")
    (folder / "empty.mkv").write_bytes(b"")
    whole = (folder / "0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    report = index(tmp_path / "s", folder)
    assert report.indexed == 5
    assert not report.complete
    assert [Path(path).name for path, _ in report.failed] == ["cut.mp4", "empty.mkv", "text.mp4"]
    assert all(reason for _, reason in report.failed)
    videos = by_name(tmp_path / "s")
    assert videos["text.mp4"].state == "failed"
    assert videos["text.mp4"].reason == dict(report.failed)[str(folder / "text.mp4")]
    assert verify(tmp_path / "s").problems == []


def test_failed_files_are_tried_again_and_a_mended_one_is_indexed(folder: Path, tmp_path: Path) -> None:
    broken = folder / "broken.mp4"
    broken.write_text("this is a text")
    first = index(tmp_path / "s", folder)
    second = index(tmp_path / "s", folder)
    assert second.failed == first.failed
    assert second.manifest == first.manifest, "nothing new was learnt, so nothing is published"
    make_clip(broken, 77, seconds=0.5)
    third = index(tmp_path / "s", folder)
    assert third.complete
    assert third.indexed == 1


def test_only_unreadable_files_publish_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no")
    report = index(tmp_path / "s", tmp_path / "a.mp4")
    assert report.manifest is None
    assert len(report.failed) == 1


def test_the_same_bytes_are_encoded_once(folder: Path, tmp_path: Path) -> None:
    (folder / "copy.mp4").write_bytes((folder / "0.mp4").read_bytes())
    encoder = FakeEncoder()
    report = index(tmp_path / "s", folder, encoder=encoder)
    assert (report.found, report.indexed, encoder.encoded_segments) == (6, 5, 8)
    assert any("same bytes" in note for note in report.notes)
    assert by_name(tmp_path / "s")["0.mp4"].paths == (str(folder / "0.mp4"), str(folder / "copy.mp4"))


def test_a_file_that_moved_is_found_again(folder: Path, tmp_path: Path) -> None:
    index(tmp_path / "s", folder)
    (folder / "deep").mkdir()
    (folder / "0.mp4").rename(folder / "deep" / "moved.mp4")
    encoder = FakeEncoder()
    report = index(tmp_path / "s", folder, encoder=encoder)
    assert encoder.encoded_segments == 0
    assert report.notes == [f"{folder / '0.mp4'} is now {folder / 'deep' / 'moved.mp4'}"]
    videos = by_name(tmp_path / "s")
    assert "0.mp4" not in videos
    assert videos["moved.mp4"].state == "indexed"


def test_gone_and_replaced_files_are_kept_until_pruned(folder: Path, tmp_path: Path) -> None:
    index(tmp_path / "s", folder)
    (folder / "0.mp4").unlink()
    make_clip(folder / "1.mp4", 55, seconds=0.5)
    report = index(tmp_path / "s", folder)
    assert report.indexed == 1
    assert report.notes == [
        f"{folder / '0.mp4'} is gone; its video was kept; --prune removes it",
        f"{folder / '1.mp4'} has new content; its former video was kept; --prune removes it",
    ]
    videos = by_name(tmp_path / "s")
    assert len(videos) == 6
    assert videos["none"].path is None
    pruned = index(tmp_path / "s", folder, prune=True)
    assert pruned.removed == 2
    assert sorted(by_name(tmp_path / "s")) == ["1.mp4", "2.mp4", "3.mp4", "long.mp4"]
    assert verify(tmp_path / "s").problems == []


def test_pruning_leaves_other_folders_alone(folder: Path, tmp_path: Path) -> None:
    other = make_clip(tmp_path / "other.mp4", 66, seconds=0.5)
    index(tmp_path / "s", folder, other)
    report = index(tmp_path / "s", folder, prune=True)
    assert report.removed == 0
    assert "other.mp4" in by_name(tmp_path / "s")


def test_captions_come_from_files_and_sidecars_once(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"video": "0.mp4", "captions": ["zero", "nought"], "tags": ["small"]},
        {"video": "long", "captions": "a long one"},
        {"video": None, "captions": "free"},
    ]
    captions = tmp_path / "c.jsonl"
    captions.write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "1.txt").write_text("one\n")
    report = index(tmp_path / "s", folder, captions=captions)
    assert report.captions == 5
    videos = by_name(tmp_path / "s")
    assert [caption.text for caption in videos["0.mp4"].captions] == ["zero", "nought"]
    assert videos["0.mp4"].tags == ("small",)
    assert [caption.text for caption in videos["1.mp4"].captions] == ["one"]
    again = index(tmp_path / "s", folder, captions=captions)
    assert again.captions == 0
    assert again.manifest == report.manifest


def test_captions_can_follow_later_without_videos(folder: Path, tmp_path: Path) -> None:
    index(tmp_path / "s", folder)
    captions = tmp_path / "c.csv"
    captions.write_text("video,captions\n2.mp4,two\n")
    report = index(tmp_path / "s", captions=captions)
    assert (report.found, report.captions) == (0, 1)
    assert by_name(tmp_path / "s")["2.mp4"].captions[0].text == "two"


def test_captions_of_videos_that_are_not_there_are_reported(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "c.jsonl"
    captions.write_text('{"video": "0", "captions": "x"}\n{"video": "nine", "captions": "y"}\n')
    report = index(tmp_path / "s", folder, captions=captions)
    assert not report.complete
    assert report.unmatched == [f"{captions}:2: there is no video 'nine' among those indexed"]
    assert report.captions == 1


def test_bad_captions_stop_the_run_before_anything_is_encoded(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "c.jsonl"
    captions.write_text('{"video": "0"}\n')
    encoder = FakeEncoder()
    with pytest.raises(CaptionFileError, match=r"c\.jsonl:1"):
        index(tmp_path / "s", folder, captions=captions, encoder=encoder)
    assert encoder.encoded_segments == 0


def test_captions_alone_make_a_store(tmp_path: Path) -> None:
    captions = tmp_path / "c.jsonl"
    captions.write_text('{"captions": ["one", "two"]}\n')
    report = index(tmp_path / "s", captions=captions)
    assert report.manifest is not None
    assert report.manifest.counts.model_dump() == {"videos": 0, "segments": 0, "captions": 2, "failed": 0}
    with StoreReader.open(tmp_path / "s") as reader:
        assert (reader.search_videos(np.ones((1, DIM), "f4"), 2)[1] == -1).all()
    assert verify(tmp_path / "s").recall == {"captions": 1.0}


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    index(tmp_path / "s", folder / "0.mp4")
    with pytest.raises(ModelMismatch, match=r"abababababab.*cdcdcdcdcdcd"):
        index(tmp_path / "s", folder, encoder=FakeEncoder(fingerprint="cd" * 32))


def test_paths_that_do_not_exist_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file or folder"):
        index(tmp_path / "s", tmp_path / "nowhere")


def test_features_that_overflow_fail_their_video(folder: Path, tmp_path: Path) -> None:
    report = index(tmp_path / "s", folder / "0.mp4", encoder=FakeEncoder(scale=1e7))
    ((path, reason),) = report.failed
    assert path == str(folder / "0.mp4")
    assert "half precision holds at most 65504" in reason


def test_a_damaged_generation_is_replaced(folder: Path, tmp_path: Path) -> None:
    index(tmp_path / "s", folder)
    current = tmp_path / "s" / "generations" / (tmp_path / "s" / "CURRENT").read_text().strip()
    (current / "videos.faiss").write_bytes(b"gone")
    index(tmp_path / "s", folder)
    found = verify(tmp_path / "s")
    assert found.problems == []
    assert any("former generation is damaged" in note for note in found.notes)
    with StoreReader.open(tmp_path / "s") as reader:
        assert reader.manifest.counts.videos == 5


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell that starts the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_done_and_ends_the_workers(folder: Path, tmp_path: Path) -> None:
    class Interrupting(FakeEncoder):
        def encode_videos(self, frames_BFSSC: np.ndarray, mask_BF: np.ndarray) -> np.ndarray:
            if self.encoded_segments:
                signal.raise_signal(signal.SIGINT)
            return super().encode_videos(frames_BFSSC, mask_BF)

    for number in range(10, 20):
        make_clip(folder / f"{number}.mp4", number, seconds=0.25)
    with pytest.raises(KeyboardInterrupt):
        index(tmp_path / "s", folder, encoder=Interrupting())
    names = [" ".join(child.cmdline()) for child in psutil.Process().children() if child.is_running()]
    assert not [name for name in names if "spawn_main" in name]
    with closing(Catalogue.open_readonly(tmp_path / "s" / "catalogue.db")) as catalogue:
        done = [v for v, state in catalogue.states().items() if state == "indexed"]
    assert 0 < len(done) < 15
    encoder = FakeEncoder()
    report = index(tmp_path / "s", folder, encoder=encoder)
    assert report.indexed == 15 - len(done)
    assert verify(tmp_path / "s").problems == []


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
    options = DecodeSettings(sampling=sampling, segment_seconds=10, image_size=16)
    paths = sorted(folder.glob("?.mp4"))
    locations = [
        Location(path=str(p), video_id=p.name, size_bytes=p.stat().st_size, modified_ns=p.stat().st_mtime_ns)
        for p in paths
    ]
    with Reader(ReaderSettings(decode=options, workers=1, timeout_seconds=timeout_seconds)) as reader:
        submit = reader._submit
        schedule = reader._pool.schedule

        def submit_broken(task: object) -> object:
            if task.location.video_id != "1.mp4":
                return submit(task)
            return schedule(broken, timeout=timeout_seconds)

        reader._submit = submit_broken
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
    read_all = Reader.read

    def read_without_second_window(self: Reader, locations: object) -> Iterator[ReadResult]:
        for result in read_all(self, locations):
            lost = result.number == 1
            yield replace(result, segment=None, reason="no frame can be decoded") if lost else result

    monkeypatch.setattr(Reader, "read", read_without_second_window)
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
    options = DecodeSettings(sampling=SamplingConfig(sample_fps=4.0), segment_seconds=0.5, image_size=16)
    running = []
    with Reader(ReaderSettings(decode=options, workers=1)) as reader:
        submit = reader._submit
        reader._submit = lambda task: running.append(task) or submit(task)
        results = []
        for result in reader.read([location]):
            results.append(result)
            assert len(running) - len(results) <= 2
            time.sleep(0.01)
    assert sorted(result.number for result in results) == list(range(12))
    assert all(result.segment is not None and len(result.segment.frames_FSSC) == 2 for result in results)
