"""Subtitle tracks inside videos: text and times of each codec, damage, and the bounds of reading."""

from __future__ import annotations

from pathlib import Path

import pytest
from subtitle_support import write_with_subtitles

from model.video import subtitles
from model.video.sampling import VideoError
from model.video.subtitles import subtitle_tracks

SAID = ((0.5, 1.5, "hello {\\i1}squid{\\i0}"), (2.0, 2.5, "two\\Nlines"))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "subrip"), ("a.mp4", "mov_text"), ("a.mkv", "webvtt"), ("a.mkv", "ass")]
)
def test_each_codec_of_text_gives_its_passages_with_their_times(tmp_path: Path, name: str, codec: str) -> None:
    path = write_with_subtitles(tmp_path / name, [(codec, "eng", SAID)])
    (track,) = subtitle_tracks(path)
    assert (track.number, track.language, track.is_forced, track.cut_seconds) == (1, "eng", False, None)
    assert [(start, end) for start, end, _ in track.passages] == [(0.5, 1.5), (2.0, 2.5)]
    assert "hello" in track.passages[0][2]
    assert track.passages[1][2] == "two\nlines"
    assert subtitle_tracks(path.read_bytes()) == [track]


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = write_with_subtitles(tmp_path / "a.mkv", [("subrip", None, SAID)], late=5.0)
    (track,) = subtitle_tracks(path)
    assert [start for start, _, _ in track.passages] == pytest.approx([0.5, 2.0], abs=0.002)


def test_a_video_without_tracks_and_what_is_no_video(tmp_path: Path) -> None:
    assert subtitle_tracks(write_with_subtitles(tmp_path / "a.mkv", [])) == []
    (tmp_path / "b.mkv").write_bytes(b"no video")
    with pytest.raises(VideoError):
        subtitle_tracks(tmp_path / "b.mkv")


def test_a_damaged_track_costs_its_damaged_packets_only(tmp_path: Path) -> None:
    said = [(float(n), n + 0.5, f"passage number {n}") for n in range(8)]
    path = write_with_subtitles(tmp_path / "a.mkv", [("subrip", "eng", said)], seconds=9)
    content = path.read_bytes().replace(b"passage number 3", b"\xff\xfe\x00\x80" * 4)
    (track,) = subtitle_tracks(content)
    texts = [text for _, _, text in track.passages]
    assert [n for n in range(8) if f"passage number {n}" in texts] == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_file_cut_anywhere_does_not_hang_or_raise_anything_else(tmp_path: Path, name: str) -> None:
    codec = "subrip" if name == "a.mkv" else "mov_text"
    content = write_with_subtitles(tmp_path / name, [(codec, "eng", SAID)]).read_bytes()
    for size in range(100, len(content), len(content) // 12):
        try:
            subtitle_tracks(content[:size])
        except VideoError:
            continue


def test_reading_ends_after_its_time_and_its_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_with_subtitles(tmp_path / "a.mkv", [("subrip", "eng", SAID)])
    (track,) = subtitle_tracks(path, read_seconds=-1.0)
    assert (track.passages, track.cut_seconds) == ([], 0.0)
    monkeypatch.setattr(subtitles, "MOST_CHARS", 3)
    (track,) = subtitle_tracks(path)
    assert (len(track.passages), track.cut_seconds) == (1, 0.5)
