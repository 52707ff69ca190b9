"""Indexing a folder: what is indexed, what is done once only, what becomes of files that move or are no videos."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
from index_support import FakeEncoder, by_name, index, make_clip, settings

from indexer.build import encode
from indexer.build.decode import windows_of
from indexer.build.options import BuildRequest
from indexer.build.progress import Progress
from indexer.build.run import build
from indexer.errors import ModelMismatch, SourceError
from indexer.sources import discover
from indexer.store.catalogue import Catalogue
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter


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
    windows = windows_of(duration, 30.0, np.arange(0.0, max(duration, 1.0), 0.5))
    assert [(window.start_seconds, window.end_seconds) for window in windows] == expected
    assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]


@pytest.mark.parametrize(
    ("duration", "times", "expected"),
    [
        (31_536_000.04, [0.0, 31_536_000.0], [0, 1_051_199]),  # two frames a year apart; the tail joins
        (24 * 3600.0, [3600.0 * hour for hour in range(24)], [120 * hour for hour in range(24)]),
        (120.0, [0.0, 59.9996], [0, 2]),  # rounded to milliseconds, it is the frame at 60
        (120.0, [0.0, 0.1], [0]),
        (1e12, [0.0], [0]),
    ],
)
def test_a_window_without_a_new_frame_is_no_segment(duration, times, expected):
    assert [window.number for window in windows_of(duration, 30.0, np.array(times))] == expected


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


def test_a_picture_that_stands_still_for_a_year_is_two_segments(tmp_path: Path) -> None:
    import av

    year, path = 365 * 86_400, tmp_path / "clips" / "year.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for grey, seconds in ((20, 0), (200, year)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), format="rgb24")
            frame.pts = 8 * seconds
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    report = index(tmp_path / "s", path.parent)
    assert report.complete
    with StoreReader.open(tmp_path / "s") as reader:
        [video] = reader.list_videos()
    assert [segment.timestamps_seconds.tolist() for segment in video.segments] == [[0.0], [year - 1.0, year]]


def test_a_known_file_is_not_read_again_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = tmp_path / "clips" / "v.mp4", []
    file.parent.mkdir()
    make_clip(file, 0, seconds=0.5)
    clip, free = file.read_bytes(), b"\x00\x00\x00\x10free"  # a box that players ignore
    digest = discover.sha256_of_file
    monkeypatch.setattr(discover, "sha256_of_file", lambda path: read.append(path) or digest(path))
    file.write_bytes(clip + free + b"original")
    first = index(tmp_path / "s", file.parent)
    status = file.stat()
    file.write_bytes(clip + free + b"tampered")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = index(tmp_path / "s", file.parent)
    assert (len(read), first.indexed, second.indexed, second.manifest) == (1, 1, 0, first.manifest)
    third = index(tmp_path / "s", file.parent, rehash=True)
    assert (len(read), third.indexed) == (2, 1)
    assert "has new content" in " ".join(third.notes)


def test_features_are_those_of_the_decoded_frames(folder: Path, tmp_path: Path) -> None:
    from model.video.sampling import decode as decode_video

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
                frames = encoder.preprocess(batch.frames)[None]
                mask = np.ones(frames.shape[:2], dtype=bool)
                expected = encoder.encode_videos(frames, mask)
                features, found_mask = reader.segment_features(np.array([segment.segment_id]))
                np.testing.assert_array_equal(features[found_mask], expected[0].astype(np.float16))
                np.testing.assert_array_equal(segment.timestamps_seconds, batch.timestamps_seconds)
                pooled = reader.segment_embeddings(np.array([segment.segment_id]))
                np.testing.assert_array_equal(pooled, encoder.pool(expected, mask))


def test_scores_do_not_depend_on_the_order_of_work(
    folder: Path, tmp_path: Path, tiny_encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was interrupted, and met the rest in other batches, answers as one that was not, to the last bit."""
    of_model = settings(fingerprint=tiny_encoder.fingerprint, dim=tiny_encoder.dim)

    def build_in(store: Path, *runs: list[Path]) -> dict[tuple[str, int], bytes]:
        for paths in runs:
            with StoreWriter.open(store, settings=of_model) as writer:
                build(writer, tiny_encoder, BuildRequest(paths=[str(path) for path in paths]), Progress())
        with StoreReader.open(store) as reader:
            queries = tiny_encoder.map_rows(reader.frozen_map, np.eye(3, tiny_encoder.dim))
            scores, ids = reader.search_videos(queries, 8)
            return {
                (segment.video_id, segment.number, q): scores[q, place].tobytes()
                for q in range(3)
                for place, segment in enumerate(reader.segments(ids[q]))
            }

    undisturbed = build_in(tmp_path / "undisturbed", [folder])
    monkeypatch.setattr(encode, "SEGMENT_BATCH", 3)
    interrupted = build_in(tmp_path / "interrupted", [folder / "3.mp4", folder / "long.mp4"], [folder])
    assert len(undisturbed) == 3 * 8
    assert interrupted == undisturbed


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
        def encode_videos(self, frames_BFHWC: np.ndarray, mask_BF: np.ndarray) -> np.ndarray:
            with closing(Catalogue.open_readonly(tmp_path / "s" / "catalogue.db")) as catalogue:
                if "indexed" in catalogue.states().values():
                    signal.raise_signal(signal.SIGINT)
            return super().encode_videos(frames_BFHWC, mask_BF)

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
