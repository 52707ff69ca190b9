"""Transcripts by speech recognition, with a stand-in of a faster-whisper model: real layout, random weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from index_support import by_name, index
from speech_support import WORD, write_whisper, write_with_sound
from typer.testing import CliRunner

from indexer.build.progress import Progress
from indexer.build.transcribe import Recogniser, transcribe_files, transcribe_store
from indexer.errors import StoreError
from indexer.store.reader import StoreReader
from model.video.sampling import VideoError
from model.video.sound import SAMPLES_PER_SECOND, decode_sound

faster_whisper = pytest.importorskip("faster_whisper", reason="the extra `speech` is not installed")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whisper(tmp_path_factory.mktemp("whisper") / "model")


@pytest.fixture(scope="module")
def recogniser(whisper: Path) -> Recogniser:
    return Recogniser(str(whisper), device="cpu", vad=False)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_with_sound(folder / "spoken.mp4")
    write_with_sound(folder / "silent.mp4", sound=False, seed=1)
    return folder


def test_sound_is_decoded_to_one_channel_at_the_rate_of_the_model(videos: Path) -> None:
    found = decode_sound(str(videos / "spoken.mp4"))
    assert found is not None
    samples, start = found
    assert len(samples) == pytest.approx(3 * SAMPLES_PER_SECOND, rel=0.02)
    assert start == pytest.approx(0, abs=0.1)
    assert 0.2 < abs(samples).max() < 0.4
    assert decode_sound(str(videos / "silent.mp4")) is None
    (videos / "damaged.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError):
        decode_sound(str(videos / "damaged.mp4"))


def test_transcripts_are_written_beside_videos_and_indexed_from_there(videos, recogniser, tmp_path) -> None:
    (videos / "damaged.mp4").write_bytes(b"no video")
    files = sorted(videos.glob("*.mp4"))
    report = transcribe_files(files, recogniser, Progress())
    assert (report.written, report.silent, report.known) == (1, 1, 0)
    assert [Path(name).name for name, _ in report.failed] == ["damaged.mp4"]
    assert WORD in (videos / "spoken.en.vtt").read_text()
    again = transcribe_files(files, recogniser, Progress())
    assert (again.written, again.known) == (0, 1)
    assert index(tmp_path / "store", videos).transcripts == 1
    with StoreReader.open(tmp_path / "store") as reader:
        (found,) = reader.search_words(WORD, 5)
    assert found.video_id == by_name(tmp_path / "store")["spoken.mp4"].video_id


def test_transcripts_into_a_store_are_searched_at_once_and_made_once(videos, recogniser, tmp_path) -> None:
    store = tmp_path / "store"
    index(store, videos)
    with StoreReader.open(store) as before:
        report = transcribe_store(store, recogniser, Progress())
        assert (report.written, report.silent, report.known, report.failed) == (1, 1, 0, [])
        after = before.refreshed()
        assert after is not None
        with after:
            (found,) = after.search_words(WORD, 5)
            assert found.passage is not None
            assert found.passage[0] < 1
            assert [(one.language, one.origin) for one in after.transcripts(found.video_id)] == [("en", "speech")]
    again = transcribe_store(store, recogniser, Progress())
    assert (again.written, again.silent, again.known) == (0, 0, 2)
    (videos / "spoken.en.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\ncorrected by hand\n")
    assert index(store, videos).transcripts == 1
    with StoreReader.open(store) as reader:
        assert reader.search_words(WORD, 5) == []


def test_passages_without_a_voice_are_passed_over(videos, whisper) -> None:
    found = Recogniser(str(whisper), device="cpu").transcript(videos / "spoken.mp4")  # a tone
    assert found is not None
    assert found[1] == ()


def test_a_model_that_cannot_be_loaded_is_an_error_that_says_what_to_give(whisper, tmp_path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(whisper, copy)
    (copy / "model.bin").write_bytes(b"damaged")
    with pytest.raises(StoreError, match="cannot be loaded"):
        Recogniser(str(copy), device="cpu")
    (copy / "model.bin").unlink()
    with pytest.raises(StoreError, match=r"model\.bin is missing"):
        Recogniser(str(copy), device="cpu")
    with pytest.raises(StoreError, match="tiny, base, small"):
        Recogniser("no-such-size", device="cpu")


def test_without_the_extra_the_error_names_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(StoreError, match=r"emcl-search\[speech\]"):
        Recogniser("small")


def test_the_command_transcribes_files_or_a_store(videos, whisper, tmp_path) -> None:
    from service.cli import app

    store = tmp_path / "store"
    index(store, videos)
    options = ["--model", str(whisper), "--device", "cpu", "--no-vad"]
    run = CliRunner().invoke(app, ["transcribe", "--store", str(store), *options])
    assert (run.exit_code, run.exception) == (0, None), run.output
    assert "1 transcripts written, 1 videos without speech, 0 had one" in run.output
    run = CliRunner().invoke(app, ["transcribe", str(videos), *options])
    assert run.exit_code == 0
    assert (videos / "spoken.en.vtt").exists()
    assert CliRunner().invoke(app, ["transcribe"]).exit_code == 2
    assert CliRunner().invoke(app, ["transcribe", str(videos), "--store", str(store)]).exit_code == 2
