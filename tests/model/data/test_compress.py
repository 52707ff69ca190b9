"""Compression: the same frames, the right shape, upright, silent, resumable; failures are reported and cost no more."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from model.cli import app
from model.config import SamplingConfig
from model.data import compress
from model.data.compress import CompressSettings, compress_folder, compress_video, small_size
from model.video.sampling import VideoError, decode, probe

SMALL = CompressSettings(short_side=64)


def write_video(path, *, width=96, height=72, seconds=3, rate=12, turned=0, sound=False):
    """The left half is dark, the right half bright, and both grow brighter from second to second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": "10", "threads": "1"})
        stream.width, stream.height = width, height
        if turned:
            stream.set_display_rotation(turned)
        audio = output.add_stream("aac", rate=8000) if sound else None
        for number in range(round(seconds * rate)):
            image = np.full((height, width, 3), 20 + 40 * int(number / rate), np.uint8)
            image[:, width // 2 :] += 80
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            output.mux(audio.encode(silence))
            output.mux(audio.encode(None))
    return path


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((320, 240), (298, 224)),
        ((240, 320), (224, 298)),  # portrait: the reference makes it 224 x 168
        ((1920, 1080), (398, 224)),
        ((1080, 1920), (224, 398)),
        ((100, 80), (100, 80)),
        ((101, 81), (100, 80)),
        ((1, 1), (2, 2)),
    ],
)
def test_the_shape_is_kept(size, expected):
    assert small_size(*size, 224) == expected


@pytest.mark.parametrize(("width", "height", "expected"), [(96, 72, (86, 64)), (72, 96, (64, 86)), (48, 32, (48, 32))])
def test_the_short_side_is_made_small(tmp_path, width, height, expected):
    source = write_video(tmp_path / "a.mp4", width=width, height=height, sound=True)
    target = tmp_path / "b.mp4"
    assert compress_video(source, target, SMALL) == "written"
    info = probe(target)
    assert (info.width, info.height) == expected
    assert info.frame_rate == pytest.approx(3)
    assert info.duration_seconds == pytest.approx(3)
    with av.open(str(target)) as opened:
        assert [stream.type for stream in opened.streams] == ["video"]


@pytest.mark.parametrize("rate", [12, 25, Fraction(30000, 1001), 2])
def test_sampling_the_copy_gives_the_frames_of_the_source(tmp_path, rate):
    source = write_video(tmp_path / "a.mp4", rate=rate)
    compress_video(source, tmp_path / "b.mp4", SMALL)
    sampling = SamplingConfig(sample_fps=1.0, max_frames=12)
    before, after = (decode(path, sampling=sampling) for path in (source, tmp_path / "b.mp4"))
    # The copy's frames begin at the times that were asked for, the source's when they came on screen.
    np.testing.assert_allclose(after.timestamps_seconds, before.timestamps_seconds, atol=float(1 / rate))
    np.testing.assert_allclose(after.frames.mean(axis=(1, 2, 3)), before.frames.mean(axis=(1, 2, 3)), atol=3)


def test_a_turned_video_becomes_upright(tmp_path):
    source = write_video(tmp_path / "a.mp4", turned=90)
    assert (probe(source).width, probe(source).height) == (72, 96)
    compress_video(source, tmp_path / "b.mp4", SMALL)
    info = probe(tmp_path / "b.mp4")
    assert (info.width, info.height, info.rotation_degrees) == (64, 86, 0)
    sampling = SamplingConfig(max_frames=1)
    before, after = (decode(path, sampling=sampling).frames[0].astype(float) for path in (source, tmp_path / "b.mp4"))
    for half in (slice(0, 16), slice(-16, None)):
        assert abs(before[half].mean() - after[half].mean()) < 5
    assert abs(after[:16].mean() - after[-16:].mean()) > 50


def test_a_single_frame_is_enough(tmp_path):
    write_video(tmp_path / "a.mp4", seconds=1, rate=1)
    compress_video(tmp_path / "a.mp4", tmp_path / "b.mp4", SMALL)
    assert probe(tmp_path / "b.mp4").duration_seconds == pytest.approx(1)


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movies")
    write_video(folder / "film" / "a.b-00.01.avi", seconds=1)
    write_video(folder / "c.mkv", seconds=1)
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "empty.webm").write_bytes(b"")
    (folder / "notes.txt").write_text("no video", encoding="utf-8")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


def test_a_folder_is_compressed_failures_are_told_and_a_second_run_keeps_what_is_there(movies, tmp_path):
    result = CliRunner().invoke(app, ["data", "compress", str(movies), str(tmp_path / "small"), "--workers", "1"])
    assert result.exit_code == 1
    assert "2 written, 0 there already, 2 failed" in result.stdout
    assert "failed: broken.mp4: broken.mp4 is not a video" in result.output
    assert "failed: empty.webm" in result.output
    small = tmp_path / "small"
    made = sorted(path.relative_to(small).as_posix() for path in small.rglob("*.mp4"))
    assert made == ["c.mp4", "film/a.b-00.01.mp4"]

    before = {path: path.stat().st_mtime_ns for path in small.rglob("*.mp4")}
    (small / "c.mp4").write_bytes((small / "c.mp4").read_bytes()[:200])  # a disk that was full, a copy cut off
    report = compress_folder(movies, small, CompressSettings(), workers=1)
    assert (report.written, report.kept, [name for name, _ in report.failed]) == (1, 1, ["broken.mp4", "empty.webm"])
    kept = small / "film" / "a.b-00.01.mp4"
    assert kept.stat().st_mtime_ns == before[kept]
    assert probe(small / "c.mp4").width == 96


def test_a_copy_of_other_settings_is_not_taken_and_not_overwritten(tmp_path):
    source, target = write_video(tmp_path / "a.mp4", seconds=1), tmp_path / "b.mp4"
    compress_video(source, target, SMALL)
    with pytest.raises(FileExistsError, match=r"short side 64.*expected.*short side 32"):
        compress_video(source, target, CompressSettings(short_side=32))
    with pytest.raises(FileExistsError, match="not by this command"):
        compress_video(target, source, SMALL)
    assert compress_video(source, target, SMALL) == "kept"


def test_an_interrupted_copy_is_not_seen(tmp_path, monkeypatch):
    source, target = write_video(tmp_path / "a.mp4", seconds=1), tmp_path / "out" / "b.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            compress_video(source, target, SMALL)
    assert list(target.parent.iterdir()) == []
    (tmp_path / "out" / ".partial-b.mp4").write_bytes(b"what a killed run leaves")
    assert compress_video(source, target, SMALL) == "written"
    assert [path.name for path in target.parent.iterdir()] == ["b.mp4"]


def test_a_source_that_breaks_off_leaves_nothing(tmp_path):
    (tmp_path / "a.mp4").write_bytes(write_video(tmp_path / "whole.mp4").read_bytes()[:700])
    with pytest.raises(VideoError):
        compress_video(tmp_path / "a.mp4", tmp_path / "out" / "a.mp4", SMALL)
    assert list((tmp_path / "out").iterdir()) == []


def test_names_that_would_become_one_are_told(tmp_path):
    for name in ("a.avi", "a.mkv"):
        write_video(tmp_path / "in" / name, seconds=1)
    report = compress_folder(tmp_path / "in", tmp_path / "out", SMALL, workers=1)
    assert report.written == 1
    assert [name for name, _ in report.failed] == ["a.mkv"]
    assert "rename one" in report.failed[0][1]


def test_folders_that_cannot_be_right_are_refused(tmp_path):
    write_video(tmp_path / "in" / "a.mp4", seconds=1)
    for destination in (tmp_path / "in", tmp_path / "in" / "small", tmp_path):
        with pytest.raises(ValueError, match="are nested"):
            compress_folder(tmp_path / "in", destination, SMALL)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        compress_folder(tmp_path / "nowhere", tmp_path / "out", SMALL)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no videos"):
        compress_folder(tmp_path / "none", tmp_path / "out", SMALL)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / compress.LOCK), pytest.raises(ValueError, match="another run"):
        compress_folder(tmp_path / "in", tmp_path / "out", SMALL)


def test_a_crash_of_the_decoder_costs_one_video(tmp_path, monkeypatch):
    for name in "abc":
        write_video(tmp_path / "in" / f"{name}.mp4", seconds=1)
    monkeypatch.setattr(compress, "compress_video", crash_at_b)
    report = compress_folder(tmp_path / "in", tmp_path / "out", SMALL, workers=1)
    assert report.written == 2
    assert report.failed[0][0] == "b.mp4"
    assert "crashed the decoder" in report.failed[0][1]


def crash_at_b(source: Path, target: Path, settings: CompressSettings) -> str:
    if source.name == "b.mp4":
        os._exit(11)
    return "written"
