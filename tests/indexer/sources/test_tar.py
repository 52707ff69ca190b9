"""Tar shards: what belongs together, what is passed over, what is hostile, and what a second run does not read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from index_support import FakeEncoder, make_clip
from source_support import index, member, videos_of, write_shard

from indexer.errors import SourceError
from indexer.sources import download_buffer
from indexer.sources.discover import braced, check_paths, discover
from indexer.sources.partition import Partition
from indexer.sources.tar import LARGEST_HEADER_BYTES, key_of, read_members
from indexer.store.verify import verify


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{number}.mp4", number, seconds=0.25).read_bytes() for number in range(6)]


def names_in(stream: io.BytesIO) -> list[str]:
    """Names of the members that are read; reasons for the others."""
    return [found if isinstance(found, str) else found.name for found in read_members(stream)]


def read_all(content: bytes) -> list[bytes]:
    """What the members hold."""
    return [b"" if isinstance(found, str) else found.file.read() for found in read_members(io.BytesIO(content))]


def packed(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{9..11}.tar", ["a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{2..1}.tar", ["a-2.tar", "a-1.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("s3://b/{007..008}.tar", ["s3://b/007.tar", "s3://b/008.tar"]),
        ("{word}.tar", ["{word}.tar"]),
    ],
)
def test_braces_stand_for_several_names(pattern: str, expected: list[str]) -> None:
    assert list(braced(pattern)) == expected


@pytest.mark.parametrize("pattern", ["{0..9999999}.tar", "{000..999}{000..999}{00..99}.tar"])
def test_braces_that_stand_for_too_many_names_are_refused(pattern: str) -> None:
    with pytest.raises(SourceError, match=r"stands? for more than 1000000 names"):
        list(braced(pattern))


def test_a_missing_shard_of_a_pattern_is_an_error(tmp_path: Path) -> None:
    write_shard(tmp_path / "s-0.tar", {})
    with pytest.raises(SourceError, match=r"no file or folder '.*s-1\.tar'"):
        check_paths([str(tmp_path / "s-{0..1}.tar")])


def test_a_folder_is_not_searched_for_shards_but_a_glob_finds_them(tmp_path: Path) -> None:
    write_shard(tmp_path / "s-0.tar", {})
    assert discover([str(tmp_path)]).packed == []
    assert [source.name for source in discover([str(tmp_path / "*.tar")]).packed] == [str(tmp_path / "s-0.tar")]


@pytest.mark.parametrize(("name", "key"), [("a.mp4", "a"), ("d.x/a.left.mp4", "d.x/a"), ("a", "a"), ("d/.txt", "d/")])
def test_the_key_is_all_before_the_first_dot(name: str, key: str) -> None:
    assert key_of(name) == key


def test_members_of_one_key_belong_together(clips: list[bytes], tmp_path: Path) -> None:
    for number in range(2):
        write_shard(
            tmp_path / f"s-{number:02d}.tar",
            {
                f"d/{number}a.json": {"captions": ["from json"], "tags": ["t"], "title": "A title", "width": 3},
                f"d/{number}a.mp4": clips[3 * number],
                f"d/{number}a.txt": "first\n\nsecond\n",
                f"d/{number}b.jpg": b"passed over",
                f"d/{number}b.mp4": clips[3 * number + 1],
                f"{number}c.left.mp4": clips[3 * number + 2],
                f"{number}c.json": {"caption": "of both"},
                f"{number}d.txt": "of nothing",
                f"{number}e.json": "no object",
            },
        )
    report = index(tmp_path / "s", tmp_path / "s-{00..01}.tar", workers=2)
    assert (report.found, report.indexed, report.captions) == (6, 6, 8)
    assert report.unmatched == [f"{tmp_path}/s-0{n}.tar!{n}d: there is no video for these captions" for n in (0, 1)]
    assert [(path, reason.partition("!")[2]) for path, reason in report.failed] == [
        (f"{tmp_path}/s-0{n}.tar", f"{n}e.json: Expecting value: line 1 column 1 (char 0)") for n in (0, 1)
    ]
    videos = videos_of(tmp_path / "s")
    assert set(videos) == {"A title", "0b", "1b", "0c.left", "1c.left"}
    assert videos["A title"].tags == ("t",)
    assert sorted(caption.text for caption in videos["A title"].captions) == ["first", "from json", "second"]
    assert [caption.text for caption in videos["0c.left"].captions] == ["of both"]
    assert videos["0b"].paths == (f"{tmp_path}/s-00.tar!d/0b.mp4",)
    assert not (tmp_path / "s" / download_buffer.FOLDER).exists()
    assert verify(tmp_path / "s").problems == []


def test_a_second_run_reads_nothing_again(clips: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0], "1.mp4": b"no video", "0.txt": "x"})
    first = index(tmp_path / "s", shard)
    opened = []
    real = download_buffer.read_members
    monkeypatch.setattr(download_buffer, "read_members", lambda stream: opened.append(1) or real(stream))
    second = index(tmp_path / "s", shard)
    assert opened == []
    assert (second.found, second.indexed, second.captions) == (2, 0, 0)
    assert second.manifest == first.manifest
    ((path, reason),) = second.failed
    assert path == f"{shard}!1.mp4"
    assert reason.startswith(dict(first.failed)[path])
    assert "--retry-failed" in reason
    third = index(tmp_path / "s", shard, retry_failed=True)
    assert opened == [1]
    assert third.failed == first.failed


def test_a_run_that_was_cut_short_passes_over_what_is_indexed(clips: list[bytes], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {f"{n}.mp4": clips[n] for n in range(3)} | {"0.txt": "x"})
    cut = tmp_path / "cut.tar"
    content = shard.read_bytes()
    cut.write_bytes(content[: content.index(b"0.txt") + 100])
    first = index(tmp_path / "s", cut)
    assert [path for path, _ in first.failed] == [str(cut)]
    assert "cut off or damaged" in first.failed[0][1]
    done = first.indexed
    assert done == 3
    encoder = FakeEncoder()
    again = index(tmp_path / "s", cut, encoder=encoder)
    assert (again.indexed, encoder.encoded_segments) == (0, 0)
    assert again.failed == first.failed
    assert again.manifest == first.manifest


def test_a_changed_shard_is_read_again_and_its_old_members_forgotten(clips: list[bytes], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0], "1.mp4": clips[1]})
    index(tmp_path / "s", shard)
    write_shard(shard, {"1.mp4": clips[1], "2.mp4": clips[2], "more.jpg": bytes(5000)})
    report = index(tmp_path / "s", shard, prune=True)
    assert (report.found, report.indexed, report.removed) == (2, 1, 1)
    assert report.notes == [f"{shard}!0.mp4 is gone from its shard"]
    assert set(videos_of(tmp_path / "s")) == {"1", "2"}


def test_the_same_bytes_in_shards_and_files_are_one_video(clips: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "f.mp4"
    file.write_bytes(clips[0])
    shards = [write_shard(tmp_path / f"{name}.tar", {"x.mp4": clips[0], "y.mp4": clips[0]}) for name in "ab"]
    report = index(tmp_path / "s", file, *shards)
    assert report.indexed == 1
    (video,) = videos_of(tmp_path / "s").values()
    assert video.paths == (*(f"{shard}!{name}.mp4" for shard in shards for name in "xy"), str(file))


def test_caption_files_may_name_members(clips: list[bytes], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"d/0.mp4": clips[0], "1.mp4": clips[1]})
    captions = tmp_path / "c.jsonl"
    captions.write_text(f'{{"video": "0", "captions": "x"}}\n{{"video": "{shard}!1.mp4", "captions": "y"}}\n')
    report = index(tmp_path / "s", shard, captions=captions)
    assert report.complete
    assert [video.captions[0].text for video in videos_of(tmp_path / "s").values()] in (["x", "y"], ["y", "x"])


def test_a_shard_belongs_to_one_part(clips: list[bytes], tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"s-{n}.tar", {"0.mp4": clips[n], "1.mp4": clips[n + 3]}) for n in range(3)]
    found = [
        index(tmp_path / f"p{number}", *shards, partition=Partition(number=number, count=2)).found for number in (1, 2)
    ]
    assert sum(found) == 6
    assert all(count % 2 == 0 for count in found)


def test_kept_media_lies_in_the_store_and_can_be_added_later(clips: list[bytes], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0], "1.MP4": clips[1]})
    index(tmp_path / "s", shard)
    encoder = FakeEncoder()
    report = index(tmp_path / "s", shard, encoder=encoder, keep_media=True)
    assert (report.indexed, encoder.encoded_segments) == (0, 0)
    for number in range(2):
        video = videos_of(tmp_path / "s")[str(number)]
        kept = tmp_path / "s" / "media" / f"{video.video_id}.mp4"
        assert kept.read_bytes() == clips[number]
        assert str(kept) in video.paths
    again = index(tmp_path / "s", shard, keep_media=True)
    assert again.manifest == report.manifest


def test_a_full_disk_stops_the_run_and_is_no_fault_of_the_shard(
    clips: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer.errors import StoreError

    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0]})

    def full(*_: object) -> None:
        raise download_buffer.no_copy(OSError(28, "No space left on device"))

    monkeypatch.setattr(download_buffer, "append", full)
    with pytest.raises(StoreError, match=r"No space left on device.*run the same command again"):
        index(tmp_path / "s", shard)
    monkeypatch.undo()
    assert index(tmp_path / "s", shard).indexed == 1


def test_a_video_that_is_larger_than_what_is_copied_costs_only_itself(
    clips: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0] + bytes(100_000), "1.mp4": clips[1], "2.mp4": clips[2]})
    monkeypatch.setattr(download_buffer, "BUFFER_BYTES", max(map(len, clips[1:3])) + 10)
    report = index(tmp_path / "s", shard)
    assert report.indexed == 2
    ((path, reason),) = report.failed
    assert path == str(shard)
    assert reason.startswith("member '0.mp4': it has")


# Hostile shards.


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (member("../up.mp4"), "leads out of the shard"),
        (member("/etc/passwd.mp4"), "leads out of the shard"),
        (member("a/../../b.mp4"), "leads out of the shard"),
        (member("a\\..\\b.mp4"), "leads out of the shard"),
        (member("bell\x07.mp4"), "control characters"),
        (member("\udcff.mp4"), "not valid UTF-8"),
        (member("link.mp4", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "not a regular file"),
        (member("hard.mp4", kind=tarfile.LNKTYPE, linkname="good.mp4"), "not a regular file"),
        (member("pipe.mp4", kind=tarfile.FIFOTYPE), "not a regular file"),
        (member("disk.mp4", kind=tarfile.BLKTYPE, devmajor=8), "not a regular file"),
    ],
)
def test_only_plain_members_with_plain_names_are_read(info: tarfile.TarInfo, reason: str) -> None:
    found = names_in(io.BytesIO(packed((info, b""), (member("good.mp4", 1), b"x"))))
    assert reason in found[0]
    assert found[1:] == ["good.mp4"]


def test_a_member_is_never_written_under_its_name(clips: list[bytes], tmp_path: Path) -> None:
    shard = tmp_path / "in" / "a.tar"
    shard.parent.mkdir()
    evil = (member("../../escaped.mp4", 3), b"abc")
    shard.write_bytes(packed(evil, (member("good.mp4", len(clips[0])), clips[0])))
    assert index(tmp_path / "s", shard).indexed == 1
    assert [path for path in tmp_path.rglob("*") if "escaped" in path.name] == []


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_long_headers_are_not_read(kind: bytes) -> None:
    size = LARGEST_HEADER_BYTES + 1
    content = packed((member("././@LongLink", size, kind), bytes(size)), (member("good.mp4"), b""))
    with pytest.raises(SourceError, match="has a header of 65537 bytes"):
        names_in(io.BytesIO(content))


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "0,1"},
        {"GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
    ],
)
def test_sparse_members_end_the_shard(headers: dict[str, str]) -> None:
    info = member("a.mp4", 512, pax_headers=headers)
    with pytest.raises(SourceError, match="sparse member"):
        names_in(io.BytesIO(packed((info, bytes(512)), form=tarfile.PAX_FORMAT)))
    with pytest.raises(SourceError, match="sparse member"):
        names_in(io.BytesIO(packed((member("a.mp4", 0, tarfile.GNUTYPE_SPARSE), b""))))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_upon_headers_end_the_shard_and_not_the_run(kind: bytes, clips: list[bytes], tmp_path: Path) -> None:
    header = member("././@LongLink", 2, kind).tobuf(tarfile.GNU_FORMAT) + b"a".ljust(tarfile.BLOCKSIZE, b"\0")
    (tmp_path / "bad.tar").write_bytes(header * 600 + bytes(1024))
    report = index(tmp_path / "s", tmp_path / "bad.tar", write_shard(tmp_path / "good.tar", {"0.mp4": clips[0]}))
    assert report.failed == [(str(tmp_path / "bad.tar"), "it is damaged: more than 16 headers of one member")]
    assert report.indexed == 1


def test_a_number_with_more_digits_than_are_read_ends_the_shard() -> None:
    content = b"9" * 5000 + b" path=a.mp4\n"
    header = member("pax", len(content), tarfile.XHDTYPE)
    with pytest.raises(SourceError, match="damaged or not a tar file"):
        names_in(io.BytesIO(packed((header, content), (member("a.mp4"), b""))))


@pytest.mark.parametrize("key", ["title", "caption", "captions", "tags"])
def test_half_a_character_in_a_label_costs_only_the_label(key: str, clips: list[bytes], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0], "0.json": f'{{"{key}": "\\ud83d cut"}}', "0.txt": "x"})
    report = index(tmp_path / "s", shard)
    assert (report.indexed, report.captions) == (1, 1)
    ((path, reason),) = report.failed
    assert path == str(shard)
    assert reason == f"{shard}!0.json: `{key}` contains half of a character (a lone surrogate)"


@pytest.mark.parametrize("size", ["-1024", "9999999999999999"])
def test_a_size_that_cannot_be_true_ends_the_shard(size: str) -> None:
    info = member("a.mp4", 512, pax_headers={"size": size})
    content = packed((info, bytes(512)), (member("b.mp4"), b""), form=tarfile.PAX_FORMAT)
    with pytest.raises(SourceError, match=r"cut off or damaged|damaged or not a tar file"):
        read_all(content)


@pytest.mark.parametrize("content", [b"", b"x", b"this is no tar file" * 100, b"\x1f\x8b" + bytes(2000), bytes(511)])
def test_what_is_no_tar_file_is_a_reason(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    report = index(tmp_path / "s", tmp_path / "a.tar")
    assert len(report.failed) == 1
    assert report.failed[0][0] == str(tmp_path / "a.tar")
    assert report.manifest is None


def test_a_shard_cut_anywhere_is_told_and_never_stops(clips: list[bytes]) -> None:
    content = packed(*((member(f"{n}.mp4", len(clips[n])), clips[n]) for n in range(2)))
    end = content.rindex(clips[1]) + len(clips[1])
    for cut in (*range(0, end, 700), end, end + 100):
        with pytest.raises(SourceError):
            read_all(content[:cut])


def test_damage_in_the_middle_costs_what_comes_after_it(clips: list[bytes], tmp_path: Path) -> None:
    content = bytearray(packed(*((member(f"{n}.mp4", len(clips[n])), clips[n]) for n in range(3))))
    header = content.index(b"1.mp4")
    content[header : header + 20] = bytes(range(20))
    (tmp_path / "a.tar").write_bytes(content)
    whole = write_shard(tmp_path / "b.tar", {"3.mp4": clips[3]})
    report = index(tmp_path / "s", tmp_path / "a.tar", whole)
    assert report.indexed == 2
    ((path, reason),) = report.failed
    assert path == str(tmp_path / "a.tar")
    assert "cut off or damaged" in reason
