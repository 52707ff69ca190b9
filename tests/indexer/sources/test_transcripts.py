"""Transcript files: the formats, encodings and damage that they come in, and which video each belongs to."""

from __future__ import annotations

import json
import time
import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest

from indexer.errors import TranscriptError
from indexer.sources import transcripts
from indexer.sources.transcripts import Cue, TranscriptFolders, parse, webvtt_of

SRT = (
    "1\n00:00:01,000 --> 00:00:02,500\nGrüße, <i>dear</i> {\\an8}friends\nof all\n\n"
    "2\n00:01:00,500 --> 00:01:02,000\nA & B\n"
)
VTT = (
    "WEBVTT - a title\n\nSTYLE\n::cue { color: red }\n\nNOTE\nnot said\n\nintroduction\n"
    "00:01.000 --> 00:02.500 line:0 align:start\n<v Bob>Hi &amp; <c.loud>you</c>\nthere\n\n"
    "01:00:03.000 --> 01:00:04.000\nlate\n"
)


def texts(content: bytes, suffix: str) -> list[tuple[float, float, str]]:
    return [(cue.start_seconds, cue.end_seconds, cue.text) for cue in parse(content, suffix).cues]


def test_subrip_without_its_formatting() -> None:
    expected = [(1.0, 2.5, "Grüße, dear friends\nof all"), (60.5, 62.0, "A & B")]
    assert texts(SRT.encode(), ".srt") == expected
    assert texts(SRT.replace("\n", "\r\n").encode(), ".srt") == expected


def test_webvtt_without_comments_styles_names_of_cues_and_markup() -> None:
    assert texts(VTT.encode(), ".vtt") == [(1.0, 2.5, "Hi & you\nthere"), (3603.0, 3604.0, "late")]


@pytest.mark.parametrize(
    "data",
    [
        {"text": "x", "language": "en", "segments": [{"id": 0, "start": 1, "end": 2.5, "text": " Hello "}]},
        [{"start": 1.0, "end": 2.5, "text": "Hello"}],
        {"transcription": [{"offsets": {"from": 1000, "to": 2500}, "text": " Hello"}]},
    ],
)
def test_json_of_whisper_and_its_kin(data: object) -> None:
    assert texts(json.dumps(data).encode(), ".json") == [(1.0, 2.5, "Hello")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_can_be_recognised_are_read_without_a_note(encoding: str) -> None:
    parsed = parse(SRT.encode(encoding), ".srt")
    assert parsed.cues[0].text.startswith("Grüße")
    assert parsed.notes == ()


def test_an_encoding_that_is_guessed_is_stated() -> None:
    parsed = parse(SRT.encode("cp1252"), ".srt")
    assert parsed.cues[0].text.startswith("Grüße")
    assert "Windows-1252" in parsed.notes[0]


@pytest.mark.parametrize(
    ("content", "suffix", "reason"),
    [
        (b"no subtitles at all", ".srt", "has to begin with a number"),
        (b"1\n00:00:01,000 --> 00:00:02,000\nno header\n", ".vtt", "has to begin with WEBVTT"),
        (SRT.encode("utf-16-le"), ".srt", "zero bytes"),
        (b"\xff\xfe1\n0", ".srt", "not valid utf-16"),
        (b"1\n00:00:01,000 --> 00:00:02,000\n\x81\x8d\n", ".srt", "neither UTF-8 nor Windows-1252"),
        (b'{"segments": [', ".json", "not valid JSON"),
        (b"[" * 200_000, ".json", "not valid JSON"),
        (b'{"title": "a"}', ".json", "`segments`"),
        (b'{"segments": [1]}', ".json", "segment 0"),
        (b'{"segments": [{"start": "a", "end": 1, "text": "x"}]}', ".json", "segment 0"),
        (b'{"segments": [{"start": NaN, "end": 1, "text": "x"}]}', ".json", "segment 0"),
        (b'{"segments": [{"start": 0, "end": 1, "text": 5}]}', ".json", "segment 0"),
        (b'{"segments": [{"start": -1, "end": 1, "text": "x"}]}', ".json", "times are from 0"),
        (b'{"segments": [{"start": 0, "end": 1e300, "text": "x"}]}', ".json", "times are from 0"),
        (b"1\n9999999:00:01,000 --> 00:00:02,000\nx\n", ".srt", "times are from 0"),
        (b"1\n00:00:01,000 --> 00:00:02,000\n" + b"x" * 2001 + b"\n", ".srt", "2,001 characters"),
        (b" " * (transcripts.MOST_BYTES + 1), ".srt", "at most"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_the_reason(content: bytes, suffix: str, reason: str) -> None:
    with pytest.raises(TranscriptError, match=reason):
        parse(content, suffix)


def test_the_number_of_cues_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "MOST_CUES", 1)
    with pytest.raises(TranscriptError, match="2 cues"):
        parse(SRT.encode(), ".srt")


def test_cues_come_in_order_of_time_and_backward_ones_are_noted() -> None:
    content = b"1\n00:00:09,000 --> 00:00:08,000\nlast\n\n2\n00:00:01,000 --> 00:00:02,000\nfirst\n"
    assert texts(content, ".srt") == [(1.0, 2.0, "first"), (9.0, 9.0, "last")]
    assert "1 cues end before they start" in parse(content, ".srt").notes[0]


@pytest.mark.parametrize("times", ["00:00:01,000 --> soon", f"{'9' * 20}:00:01,0 --> 0"])
def test_cues_that_cannot_be_read_are_counted_in_a_note(times: str) -> None:
    parsed = parse(f"{SRT}\n3\n{times}\nx\n".encode(), ".srt")
    assert len(parsed.cues) == 2
    assert "1 cues without text, or with times that cannot be read" in parsed.notes[0]


def test_characters_that_are_not_text_are_dropped() -> None:
    data = {"segments": [{"start": 0, "end": 1, "text": "a\u202eb\ud800c\x07\u200bd\te"}]}
    assert texts(json.dumps(data).encode(), ".json") == [(0.0, 1.0, "abcd e")]


@pytest.mark.parametrize("bait", ["<a", "\n", " ", "-->", "&", "{\\", "00:", "1\n"])
def test_costly_looking_content_is_read_in_linear_time(bait: str) -> None:
    def seconds(count: int) -> float:
        content = ("1\n00:00:01,000 --> 00:00:02,000\n" + bait * count + "\n").encode()
        began = time.process_time()
        for body, suffix in ((content, ".srt"), (b"WEBVTT\n\n" + content.replace(b",", b"."), ".vtt")):
            with suppress(TranscriptError):
                parse(body, suffix)
        return time.process_time() - began

    assert seconds(400_000) < 5  # quadratic work would take many minutes


def test_written_webvtt_is_read_as_what_it_was_and_holds_no_markup() -> None:
    cues = (
        Cue(start_seconds=0.0, end_seconds=1.0, text="<script>alert(1)</script> & 00:01.000 --> 00:02.000"),
        Cue(start_seconds=3599.9996, end_seconds=360_000.0, text="two\nlines"),
    )
    written = webvtt_of(cues)
    assert "<script>" not in written
    again = parse(written.encode(), ".vtt").cues
    assert [cue.text for cue in again] == [cue.text for cue in cues]
    assert [cue.start_seconds for cue in again] == [0.0, 3600.0]


def test_files_belong_to_the_video_with_their_stem(tmp_path: Path) -> None:
    names = (
        "a.mp4", "a.srt", "a.vtt", "a.json", "a.en.srt", "a.pt-BR.sdh.vtt", "ab.srt", "a.b.mp4", "a.b.srt", ".a.srt",
        "a.notalanguage.srt",
    )  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    folders = TranscriptFolders()
    assert {file.language: file.path.name for file in folders.of(tmp_path / "a.mp4")} == {
        "und": "a.vtt", "en": "a.en.srt", "pt-BR": "a.pt-BR.sdh.vtt",
    }  # fmt: skip
    assert [file.path.name for file in folders.of(tmp_path / "a.b.mp4")] == ["a.b.srt"]


def test_names_that_compose_accents_differently_are_one(tmp_path: Path) -> None:
    (tmp_path / f"{unicodedata.normalize('NFD', 'Zürich')}.de.srt").touch()
    (found,) = TranscriptFolders().of(tmp_path / f"{unicodedata.normalize('NFC', 'Zürich')}.mp4")
    assert found.language == "de"


def test_a_named_folder_comes_before_files_beside_the_video(tmp_path: Path) -> None:
    videos, named = tmp_path / "videos", tmp_path / "texts"
    for path in (videos / "a.srt", named / "deep" / "a.srt", videos / "a.de.srt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = TranscriptFolders(named).of(videos / "a.mp4")
    assert {(file.path, file.language, file.named) for file in found} == {
        (named / "deep" / "a.srt", "und", True), (videos / "a.de.srt", "de", False),
    }  # fmt: skip


def test_links_that_lead_out_of_the_allowed_folders_are_not_read(tmp_path: Path) -> None:
    inside, secret = tmp_path / "in", tmp_path / "secret.srt"
    inside.mkdir()
    secret.write_text(SRT)
    (inside / "a.srt").symlink_to(secret)
    folders = TranscriptFolders(within=[inside])
    assert folders.of(inside / "a.mp4") == []
    assert "a.srt: a link leads out" in folders.problems[0]
