"""Finding and hashing files: what is taken, what is skipped, what is read again."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from indexer.errors import SourceError
from indexer.locations import Location
from indexer.sources import discover as sources
from indexer.sources.captions import read_sidecars
from indexer.sources.discover import discover, hash_files, missing


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(found: sources.Discovery, folder: Path) -> list[str]:
    return [file.path.relative_to(folder).as_posix() for file in found.files]


def test_folders_are_searched_for_video_suffixes_and_hidden_things_skipped(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.mkv", "deep/er/c.webm", ".hidden.mp4", ".git/d.mp4", "notes.txt", "code.ts"):
        touch(tmp_path / name)
    assert names(discover([str(tmp_path)]), tmp_path) == ["a.mkv", "b.MP4", "deep/er/c.webm"]


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    file = touch(tmp_path / "recording.ts")
    found = discover([str(file)])
    assert [f.path for f in found.files] == [file]
    assert found.files[0].root == tmp_path
    assert found.folders == []


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path) -> None:
    videos = ["a.mp4", "b.MOD", "c.lrv", "g.mp4 "]
    for name in [*videos, "a.txt", "a.jpg", "d.xyz", "e.XYZ", "f.ts", "README", ".hidden.xyz"]:
        touch(tmp_path / "deep" / name)
    found = discover([str(tmp_path)])
    assert names(found, tmp_path / "deep") == videos
    assert dict(found.passed_over) == {".xyz": 2, ".ts": 1, "": 1}


def test_globs_match_files_and_folders(tmp_path: Path) -> None:
    for name in ("one/a.mp4", "two/b.mp4", "two/c.avi"):
        touch(tmp_path / name)
    assert names(discover([str(tmp_path / "**" / "*.mp4")]), tmp_path) == ["one/a.mp4", "two/b.mp4"]
    assert names(discover([str(tmp_path / "tw?")]), tmp_path) == ["two/b.mp4", "two/c.avi"]


def test_a_file_name_with_glob_characters_is_a_file_name(tmp_path: Path) -> None:
    file = touch(tmp_path / "take [1].mp4")
    assert [f.path for f in discover([str(file)]).files] == [file]


def test_a_file_reached_twice_is_found_once(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.mp4")
    assert len(discover([str(tmp_path), str(file), f"{tmp_path}/./a.mp4"]).files) == 1


def test_the_store_itself_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "features.mp4")
    touch(tmp_path / "a.mp4")
    assert names(discover([str(tmp_path)], exclude=tmp_path / "store"), tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("path", ["nowhere", "nothing/*.mp4"])
def test_paths_that_lead_nowhere_are_errors(tmp_path: Path, path: str) -> None:
    with pytest.raises(SourceError, match="no file or folder"):
        discover([str(tmp_path / path)])


def test_the_hash_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", b"hello")
    (hashed,) = hash_files(discover([str(tmp_path)]).files, {}, threads=2)
    assert hashed.location is not None
    assert hashed.location.video_id == hashlib.sha256(b"hello").hexdigest()
    assert hashed.location.size_bytes == 5


def test_unchanged_files_are_not_read_again_and_changed_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = touch(tmp_path / "a.mp4", b"hello")
    files = discover([str(tmp_path)]).files
    (first,) = hash_files(files, {}, threads=1)
    assert first.location is not None
    known = {first.location.path: first.location}
    read = []
    real = sources.sha256_of_file
    monkeypatch.setattr(sources, "sha256_of_file", lambda path: read.append(path) or real(path))
    assert [h.location for h in hash_files(files, known, threads=1)] == [first.location]
    assert read == []
    file.write_bytes(b"other")
    os.utime(file, ns=(1, first.location.modified_ns + 1))
    (again,) = hash_files(files, known, threads=1)
    assert again.location is not None
    assert again.location.video_id == hashlib.sha256(b"other").hexdigest()


def test_a_file_that_was_exchanged_for_one_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    file = touch(tmp_path / "a.mp4", b"hello")
    files = discover([str(tmp_path)]).files
    (first,) = hash_files(files, {}, threads=1)
    assert first.location is not None
    other = touch(tmp_path / "other", b"jello")  # there beside the first, so its inode is another
    os.utime(other, ns=(1, first.location.modified_ns))
    other.replace(file)
    (again,) = hash_files(files, {str(file): first.location}, threads=1)
    assert again.location is not None
    assert again.location.video_id == hashlib.sha256(b"jello").hexdigest()


def test_a_file_recorded_without_its_inode_is_known_by_size_and_time_and_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = touch(tmp_path / "a.mp4", b"hello")
    status = file.stat()
    former = Location(path=str(file), video_id="v", size_bytes=status.st_size, modified_ns=status.st_mtime_ns)
    monkeypatch.delattr(sources, "sha256_of_file")  # reading it would be an error
    (found,) = hash_files(discover([str(tmp_path)]).files, {str(file): former}, threads=1)
    assert found.location == replace(former, inode=status.st_ino)


def test_a_file_that_vanishes_or_changes_while_it_is_read_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = touch(tmp_path / "a.mp4"), touch(tmp_path / "b.mp4")
    files = discover([str(tmp_path)]).files
    other.unlink()

    def grow(path: Path) -> str:
        path.write_bytes(b"more than before")
        return "0" * 64

    monkeypatch.setattr(sources, "sha256_of_file", grow)
    changed, gone = hash_files(files, {}, threads=1)
    assert changed.location is None
    assert "changed while it was read" in (changed.reason or "")
    assert gone.location is None
    assert "No such file" in (gone.reason or "")
    assert file.exists()


def test_a_name_that_is_not_utf8_is_a_reason(tmp_path: Path) -> None:
    touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")))
    (hashed,) = hash_files(discover([str(tmp_path)]).files, {}, threads=1)
    assert "not valid UTF-8" in (hashed.reason or "")


def test_missing_are_known_places_under_the_folders_without_a_file(tmp_path: Path) -> None:
    here = touch(tmp_path / "in" / "here.mp4")
    named = touch(tmp_path / "in" / "named.bin")
    paths = [here, named, tmp_path / "in" / "gone.mp4", tmp_path / "outside" / "gone.mp4"]
    known = [Location(path=str(path), video_id="v", size_bytes=1, modified_ns=1) for path in paths]
    found = missing(known, discover([str(tmp_path / "in")]))
    assert [Path(location.path).name for location in found] == ["gone.mp4"]
    assert found[0].path == str(tmp_path / "in" / "gone.mp4")


def test_links_out_of_the_allowed_folders_are_not_followed(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for folder in (allowed / "deep", outside):
        folder.mkdir(parents=True)
    for path in (allowed / "own.mp4", allowed / "deep" / "other.mp4", outside / "secret.mp4", outside / "s.tar"):
        path.write_bytes(b"x")
    (outside / "secret.txt").write_text("a secret line\n")
    (allowed / "own.txt").symlink_to(outside / "secret.txt")
    (allowed / "linked.mp4").symlink_to(outside / "secret.mp4")
    (allowed / "inner.mp4").symlink_to(allowed / "deep" / "other.mp4")
    (allowed / "s.tar").symlink_to(outside / "s.tar")
    (allowed / "loop.mp4").symlink_to(allowed / "loop.mp4")
    found = discover([str(allowed), str(allowed / "s.tar")], within=[allowed])
    assert names(found, allowed) == ["deep/other.mp4", "inner.mp4", "own.mp4"]
    assert found.packed == []
    assert {Path(path).name for path, _ in found.unreadable} == {"linked.mp4", "s.tar", "loop.mp4"}
    entries, unreadable = read_sidecars([allowed / "own.mp4"], within=[allowed])
    assert entries == []
    assert "leads out of the folders" in unreadable[0]
    assert "secret line" not in str(unreadable)
    assert [entry.captions for entry in read_sidecars([allowed / "own.mp4"])[0]] == [("a secret line",)]
