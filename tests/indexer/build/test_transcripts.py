"""Transcripts of an indexing run: files beside videos and in a named folder, changed, damaged, removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from index_support import by_name, index
from subtitle_support import write_with_subtitles

from indexer.build.decode import tracks_of
from indexer.build.progress import BuildReport
from indexer.library import FoundByWords
from indexer.sources import transcripts
from indexer.sources.transcripts import Cue
from indexer.store.reader import StoreReader
from indexer.store.records import TranscriptRow
from indexer.store.writer import StoreWriter
from model.video.types import DecodeLimits


def subtitles(text: str, start: float = 0.0) -> str:
    return f"1\n00:00:0{start:.3f} --> 00:00:09.000\n{text}\n"


def search(store: Path, text: str) -> list[FoundByWords]:
    with StoreReader.open(store) as reader:
        return reader.search_words(text, 10)


def languages(store: Path, name: str) -> dict[str, str]:
    with StoreReader.open(store) as reader:
        return {one.language: one.origin for one in reader.transcripts(by_name(store)[name].video_id)}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_files_beside_videos_and_in_a_named_folder_become_searchable_moments(folder: Path, store: Path) -> None:
    (folder / "0.srt").write_text(subtitles("a giant octopus"))
    (folder / "long.en.vtt").write_text("WEBVTT\n\n00:02.200 --> 00:02.600\nthe lighthouse keeper\n")
    (folder / "long.de.srt").write_text(subtitles("der Leuchtturm"))
    named = folder.parent / "texts"
    named.mkdir()
    (named / "1.json").write_text(json.dumps({"segments": [{"start": 0.1, "end": 0.4, "text": "a blue whale"}]}))
    report = index(store, folder, transcripts=named)
    assert report.complete
    assert report.transcripts == 4
    ids = {name: video.video_id for name, video in by_name(store).items()}
    for text, name in (("octopus", "0.mp4"), ("leuchtturm", "long.mp4"), ("blue whale", "1.mp4")):
        assert [one.video_id for one in search(store, text)] == [ids[name]]
    (found,) = search(store, "lighthouse keeper")
    assert found.passage == (2.2, 2.6)
    assert [start for number, start, _ in found.segments if number == found.segment_of_passage] == [2.0]
    assert index(store, folder, transcripts=named).transcripts == 0  # nothing is read again
    assert index(store, folder).transcripts == 0
    assert languages(store, "1.mp4") == {"und": "file"}


def test_changed_files_are_read_again_and_those_of_removed_ones_go(folder: Path, store: Path) -> None:
    (folder / "0.srt").write_text(subtitles("a giant octopus"))
    (folder / "0.en.srt").write_text(subtitles("some english"))
    index(store, folder)
    (folder / "0.srt").write_text(subtitles("a small squid"))
    (folder / "0.en.srt").unlink()
    assert index(store, folder).transcripts == 1
    assert search(store, "octopus") == search(store, "english") == []
    assert search(store, "squid")
    assert languages(store, "0.mp4") == {"und": "file"}


def test_damaged_and_hostile_files_are_reported_and_keep_no_video_from_being_indexed(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "MOST_BYTES", 1000)
    (folder / "0.srt").write_bytes(b"\x00\x01\x02")
    (folder / "1.vtt").write_text("not webvtt")
    (folder / "2.srt").write_text(subtitles("x" * 1000))
    (folder / "3.json").write_text('{"segments": [{"start": "now"}]}')
    (folder / "long.srt").write_text(subtitles("a lighthouse"))
    report = index(store, folder)
    assert (report.indexed, report.transcripts, report.failed) == (5, 1, [])
    assert not report.complete
    for name, reason in (("0.srt", "zero bytes"), ("1.vtt", "WEBVTT"), ("2.srt", "more than"), ("3.json", "segment 0")):
        assert [row for row in report.unmatched if str(folder / name) in row and reason in row], (name, reason)
    assert search(store, "lighthouse")


def test_a_file_that_was_damaged_since_keeps_the_former_transcript(folder: Path, store: Path) -> None:
    (folder / "0.srt").write_text(subtitles("a giant octopus"))
    index(store, folder)
    (folder / "0.srt").write_text("nothing of the kind")
    assert len(index(store, folder).unmatched) == 1
    assert search(store, "octopus")


def test_a_guessed_encoding_is_a_note_that_names_the_file(folder: Path, store: Path) -> None:
    (folder / "0.srt").write_bytes(subtitles("Möwen über dem Meer").encode("cp1252"))
    report = index(store, folder)
    assert report.complete
    assert [note for note in report.notes if "0.srt: not UTF-8" in note]
    assert search(store, "möwen")


def test_json_of_other_programs_beside_a_video_is_passed_over(folder: Path, store: Path) -> None:
    (folder / "0.json").write_text('{"title": "a download"}')
    (folder / "1.info.json").write_text('{"id": "x"}')
    report = index(store, folder)
    assert report.complete
    assert report.transcripts == 0


def test_the_text_that_whisper_writes_too_is_no_list_of_captions(folder: Path, store: Path) -> None:
    (folder / "0.srt").write_text(subtitles("a giant octopus"))
    (folder / "0.txt").write_text("a giant octopus\n")
    (folder / "1.srt").write_text(subtitles("hello"))
    (folder / "1.txt").write_text("a cat\n")
    assert index(store, folder).captions == 1
    assert search(store, "octopus")[0].kinds == ("transcript",)


def test_a_transcript_that_was_put_over_http_is_not_replaced_by_a_file(folder: Path, store: Path) -> None:
    (folder / "0.srt").write_text(subtitles("a giant octopus"))
    index(store, folder)
    video_id = by_name(store)["0.mp4"].video_id
    cue = Cue(start_seconds=0.0, end_seconds=1.0, text="a corrected squid")
    put = TranscriptRow(language="und", origin="http", source="", version="", cues=(cue,))
    with StoreWriter.open(store) as writer:
        writer.set_transcripts({video_id: [put]})
    (folder / "0.srt").write_text(subtitles("a giant octopus again"))
    assert index(store, folder).transcripts == 0
    assert search(store, "octopus") == []
    assert search(store, "squid")


def test_a_missing_folder_of_transcripts_is_no_reason_to_forget_them(folder: Path, store: Path) -> None:
    named = folder.parent / "disk"
    named.mkdir()
    (named / "0.srt").write_text(subtitles("a giant octopus"))
    index(store, folder, transcripts=named)
    named.rename(folder.parent / "unmounted")
    index(store, folder)
    assert search(store, "octopus")


def test_transcripts_alone_can_be_given_for_videos_that_are_known(folder: Path, store: Path) -> None:
    index(store, folder)
    named = folder.parent / "texts"
    named.mkdir()
    (named / "2.srt").write_text(subtitles("a giant octopus"))
    report: BuildReport = index(store, transcripts=named)
    assert (report.transcripts, report.complete) == (1, True)
    assert search(store, "octopus")[0].video_id == by_name(store)["2.mp4"].video_id


def test_subtitle_tracks_are_searched_and_give_way_to_files(tmp_path: Path, store: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    english, german = ((1.2, 1.8, "a giant octopus"),), ((2.1, 2.9, "ein Leuchtturm"),)
    write_with_subtitles(videos / "a.mkv", [("subrip", "eng", english), ("subrip", "ger", german)])
    write_with_subtitles(videos / "b.mp4", [("mov_text", None, ((0.5, 0.9, "a blue whale"),))], seed=1)
    report = index(store, videos)
    assert report.complete
    assert languages(store, "a.mkv") == {"en": "track", "de": "track"}
    assert search(store, "octopus")[0].passage == (1.2, 1.8)
    assert search(store, "leuchtturm")[0].passage == (2.1, 2.9)
    assert search(store, "whale")[0].passage == (0.5, 0.9)
    (videos / "a.en.srt").write_text(subtitles("a small squid"))
    assert index(store, videos).transcripts == 1
    assert languages(store, "a.mkv") == {"en": "file", "de": "track"}
    assert search(store, "octopus") == []


def test_a_track_that_cannot_be_used_is_a_note_of_its_video(tmp_path: Path, store: Path) -> None:
    path = write_with_subtitles(tmp_path / "a.mkv", [("subrip", "eng", ((0, 1, "x" * 3000), (1, 2, "fine")))])
    rows, notes = tracks_of(str(path), DecodeLimits())
    assert rows == ()
    assert "subtitle track 1 cannot be used: the cue at 0.000 s has 3,000 characters" in notes[0]
    report = index(store, path)
    assert (report.indexed, report.failed) == (1, [])
    assert "subtitle track 1" in by_name(store)["a.mkv"].reason
