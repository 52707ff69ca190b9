"""``--prune`` removes what is gone, not a library whose disk is not mounted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from index_support import by_name, index, make_clip

from indexer.errors import SourceError
from indexer.locations import Location
from indexer.store.writer import StoreWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for number in range(4):
        make_clip(tmp_path / "videos" / f"{number}.mp4", number, seconds=0.5)
    index(tmp_path / "s", tmp_path / "videos")
    return tmp_path / "videos"


def test_an_empty_folder_prunes_nothing(folder: Path, tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s") as writer:
        video_id = next(iter(writer.catalogue.states()))
        writer.add_tags({video_id: ["came over HTTP"]})
    away = folder.rename(tmp_path / "away")
    folder.mkdir()  # where the disk would be mounted
    (folder / "lost+found").mkdir()
    with pytest.raises(SourceError, match=r"holds no video, but .* knows 4 below it.*--force-prune"):
        index(tmp_path / "s", folder, prune=True)
    assert len(by_name(tmp_path / "s")) == 4
    folder.joinpath("lost+found").rmdir()
    folder.rmdir()
    away.rename(folder)
    assert index(tmp_path / "s", folder, prune=True).removed == 0
    assert [video.tags for video in by_name(tmp_path / "s").values() if video.tags] == [("came over HTTP",)]


def test_one_empty_folder_of_several_is_enough(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for number in range(4, 10):
        make_clip(tmp_path / "more" / f"{number}.mp4", number, seconds=0.5)
    index(tmp_path / "s", tmp_path / "more")
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(SourceError, match="holds no video"):
        index(tmp_path / "s", folder, tmp_path / "more", prune=True)
    assert len(by_name(tmp_path / "s")) == 10


def test_more_than_half_is_refused_and_half_is_not(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        (folder / f"{number}.mp4").rename(tmp_path / f"{number}")
    with pytest.raises(SourceError, match=r"remove 3 of the 4 videos"):
        index(tmp_path / "s", folder, prune=True)
    assert len(by_name(tmp_path / "s")) == 4
    (tmp_path / "0").rename(folder / "0.mp4")
    assert index(tmp_path / "s", folder, prune=True).removed == 2


def test_force_prune_removes_all(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    assert index(tmp_path / "s", folder, prune=True, force_prune=True).removed == 4


def test_own_files_of_a_store_below_the_folder_are_no_matter_of_pruning(folder: Path, tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s") as writer:
        own = Location(path=f"media/{'a' * 64}.mp4", video_id="a" * 64, size_bytes=1, modified_ns=1)
        writer.add_locations([own])
    assert index(tmp_path / "s", tmp_path, prune=True).removed == 0
    with StoreWriter.open(tmp_path / "s") as writer:
        assert writer.catalogue.state("a" * 64) == "pending"
