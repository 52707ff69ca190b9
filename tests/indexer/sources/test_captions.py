"""Caption files: what is read, how rows find their video, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from indexer.errors import CaptionFileError
from indexer.sources.captions import CaptionEntry, VideoNames, read_caption_file, read_sidecars, resolve


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def entry(video: str | None, *captions: str, where: str = "/data/c.jsonl:1") -> CaptionEntry:
    return CaptionEntry(where=where, video=video, captions=captions, tags=())


NAMES = VideoNames(
    [
        (Path("/data/day/one.mp4"), Path("/data"), "id-one"),
        (Path("/data/night/one.mp4"), Path("/data"), "id-night"),
        (Path("/data/two.mp4"), Path("/data"), "id-two"),
        (Path("/data/copy/two.mkv"), Path("/data"), "id-two"),
        (Path("/data/three.mp4"), Path("/data"), "id-three"),
        (Path("/data/three.mkv"), Path("/data"), "id-three-b"),
    ]
)


def test_jsonl_takes_lists_single_strings_tags_and_null_videos(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.jsonl",
        json.dumps({"video": "a.mp4", "captions": ["one ", "two"], "tags": ["x"], "id": 7}),
        "",
        json.dumps({"video": None, "captions": "three\u2028still three"}),
        json.dumps({"captions": "four"}),
    )
    entries = read_caption_file(path)
    assert [(e.video, e.captions, e.tags) for e in entries] == [
        ("a.mp4", ("one", "two"), ("x",)),
        (None, ("three\u2028still three",), ()),
        (None, ("four",), ()),
    ]
    assert [e.where for e in entries] == [f"{path}:1", f"{path}:3", f"{path}:4"]


def test_csv_takes_quoted_captions_tags_and_rows_without_a_video(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "video,captions,tags", 'a.mp4,"a cat, asleep",x;y', ",free,")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets save it
    entries = read_caption_file(path)
    assert [(e.video, e.captions, e.tags) for e in entries] == [
        ("a.mp4", ("a cat, asleep",), ("x", "y")),
        (None, ("free",), ()),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "Expecting property name"),
        ("[1]", "expected an object"),
        ('{"video": "a.mp4", "caption": "x"}', "`captions` is missing"),
        ('{"video": 3, "captions": "x"}', "`video` must be"),
        ('{"video": "a.mp4", "captions": []}', "`captions` is empty"),
        ('{"video": "a.mp4", "captions": ["x", " "]}', "none of them empty"),
        ('{"video": "a.mp4", "captions": {"x": 1}}', "a text or a list"),
        ('{"video": "a.mp4", "captions": "x", "tags": [1]}', "`tags` must be"),
        ('{"video": "a.mp4", "captions": "x \\ud83d"}', "half of a character"),
        ('{"vidoe": "a.mp4", "captions": "x"}', r"`video` is missing, and \['vidoe'\] are not read"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "c.jsonl", '{"captions": "fine"}', line)
    with pytest.raises(CaptionFileError, match=reason) as caught:
        read_caption_file(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_all_bad_rows_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", *["{}"] * 30)
    with pytest.raises(CaptionFileError) as caught:
        read_caption_file(path)
    assert len(str(caught.value).splitlines()) == 21
    assert "and 10 more" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("c.csv", b"a,b\n1,2\n", ":1: expected a header"),
        ("c.csv", b"video,captions\na.mp4,x,y\n", ":2: the row has more fields"),
        ("c.csv", b"file,captions\na.mp4,x\n", ":2: `video` is missing"),
        ("c.jsonl", b'{"captions": "x"}\n\xff\n', ":2: not valid UTF-8"),
        ("c.jsonl", b"", "holds no caption"),
        ("c.yaml", b"x", "come as .jsonl or .csv"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CaptionFileError, match=reason):
        read_caption_file(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CaptionFileError, match="No such file"):
        read_caption_file(tmp_path / "nowhere.jsonl")


def test_a_sidecar_holds_one_caption_a_line(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "first", "", "  second ")
    videos = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    entries, unreadable = read_sidecars(videos)
    assert [(e.video, e.captions) for e in entries] == [
        (str(tmp_path / "a.mp4"), ("first",)),
        (str(tmp_path / "a.mp4"), ("second",)),
    ]
    assert unreadable == []


def test_a_sidecar_that_cannot_be_read_is_a_reason_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\n")
    write(tmp_path / "b.txt", "second")
    entries, unreadable = read_sidecars([tmp_path / "a.mp4", tmp_path / "b.mp4"])
    assert [entry.captions for entry in entries] == [("second",)]
    assert len(unreadable) == 1
    assert unreadable[0].startswith(f"{tmp_path / 'a.txt'}:2: not valid UTF-8")


@pytest.mark.parametrize(
    ("name", "video_id"),
    [
        ("/data/day/one.mp4", "id-one"),
        ("day/one.mp4", "id-one"),
        ("night/one.mp4", "id-night"),
        ("two.mp4", "id-two"),
        ("two", "id-two"),
        ("three.mp4", "id-three"),
        ("four.mp4", None),
    ],
)
def test_a_video_is_found_by_path_name_or_stem(name: str, video_id: str | None) -> None:
    assert NAMES.find(name, Path("/elsewhere")) == video_id


def test_a_path_beside_the_caption_file_goes_first() -> None:
    assert NAMES.find("one.mp4", Path("/data/night")) == "id-night"


@pytest.mark.parametrize("name", ["one.mp4", "one", "three"])
def test_a_name_of_several_videos_is_refused(name: str) -> None:
    with pytest.raises(CaptionFileError, match=f"^/data/c.jsonl:1: '{name}' stands for 2 videos"):
        resolve([entry(name, "x")], NAMES)


@pytest.mark.parametrize(
    "name", ["caf\u00e9.mp4", "CAFE\u0301.MP4", "Sub\\Cafe\u0301.mp4", "./sub/caf\u00e9.mp4 ", "caf\u00e9"]
)
def test_names_that_systems_write_differently_are_one(name: str) -> None:
    path = Path("/clips/sub/Cafe\u0301.mp4")
    assert VideoNames([(path, Path("/clips"), "v")]).find(name, Path("/lists")) == "v"


def test_an_exact_name_goes_before_one_that_is_like_it() -> None:
    videos = [(Path(f"/clips/{name}.mp4"), Path("/clips"), name) for name in ("a", "A")]
    names = VideoNames(videos)
    assert [names.find(name, Path("/lists")) for name in ("a", "A.mp4")] == ["a", "A"]
    with pytest.raises(ValueError, match="2 videos"):
        VideoNames([*videos, (Path("/clips/\u00e4.mp4"), Path("/clips"), "u")]).find("A.MP4", Path("/lists"))


def test_sidecars_may_be_written_differently_too(tmp_path: Path) -> None:
    for name in ("Clip.mp4", "cafe\u0301.mp4", "a.mp4", "A.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "CLIP.TXT").write_text("upper")
    (tmp_path / "caf\u00e9.txt ").write_text("composed")
    (tmp_path / "a.txt").write_text("of the small one")
    entries, unreadable = read_sidecars(sorted(tmp_path.glob("*.mp4")))
    found = {Path(entry.video).name: entry.captions for entry in entries if entry.video}
    assert found == {"Clip.mp4": ("upper",), "cafe\u0301.mp4": ("composed",), "a.mp4": ("of the small one",)}
    assert unreadable == []


def test_repetitions_are_dropped_and_unmatched_rows_listed() -> None:
    resolved = resolve([entry("two", "x", "y"), entry("two.mp4", "y"), entry(None, "y"), entry("nine", "z")], NAMES)
    assert resolved.captions == [("id-two", "x"), ("id-two", "y"), (None, "y")]
    assert resolved.unmatched == ["/data/c.jsonl:1: there is no video 'nine' among those indexed"]


def test_a_file_of_which_no_row_matches_is_an_error() -> None:
    with pytest.raises(CaptionFileError, match="no row matched"):
        resolve([entry("nine", "x"), entry("ten", "y")], NAMES)


def test_tags_of_several_rows_add_up() -> None:
    rows = [CaptionEntry(where="/data/c.csv:2", video="two", captions=("x",), tags=(tag,)) for tag in ("a", "b")]
    assert resolve(rows, NAMES).tags == {"id-two": ["a", "b"]}
