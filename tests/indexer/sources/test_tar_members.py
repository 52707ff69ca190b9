"""Which shard or URL a place belongs to, and that removed videos come back from there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from index_support import FakeEncoder, make_clip
from source_support import Served, index, serving, videos_of, write_shard

from indexer.locations import possible_sources, shard_of
from indexer.sources import download_buffer
from indexer.store.catalogue import CatalogueReader
from indexer.store.writer import StoreWriter

HTTP = frozenset({"http"})


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [make_clip(folder / f"{number}.mp4", number, seconds=0.25).read_bytes() for number in range(3)]


def remove(store: Path, title: str) -> str:
    """Remove a video; returns its id."""
    video_id = videos_of(store)[title].video_id
    with StoreWriter.open(store) as writer:
        writer.remove_videos([video_id])
    return video_id


def completeness(store: Path) -> dict[str, bool]:
    """Whether each source was read to its end, by the last part of its name."""
    catalogue = CatalogueReader.open_readonly(store / "catalogue.db")
    try:
        return {row.name.rpartition("/")[2]: row.complete for row in catalogue.sources()}
    finally:
        catalogue.close()


@pytest.mark.parametrize(
    ("path", "shard"),
    [
        ("/d/x.tar!a.mp4", "/d/x.tar"),
        ("/d/X.TAR!a.mp4", "/d/X.TAR"),
        ("/d/a!b.tar!m.mp4", "/d/a!b.tar"),
        ("/d/x.tar!what!.mp4", "/d/x.tar"),
        ("/d/x.tar!y.tar!z.mp4", "/d/x.tar"),
        ("/d/x.tar!why?.mp4", "/d/x.tar"),
        ("https://h/x.tar?sig=1&t=2!a/b.mp4", "https://h/x.tar?sig=1&t=2"),
        ("https://h/a!b.Tar?sig=1!c!.mp4", "https://h/a!b.Tar?sig=1"),
        ("s3://b/x.tar!a.mp4", "s3://b/x.tar"),
        ("/d/x.tar", None),
        ("/d/what!.mp4", None),
        ("/d/x.tar?1!a.mp4", None),
        ("https://h/x.tar?sig=1", None),
        ("https://h/get?file=x.tar!y.mp4", None),
    ],
)
def test_the_shard_of_a_member(path: str, shard: str | None) -> None:
    assert shard_of(path) == shard
    assert shard is None or shard in possible_sources(path)


def test_a_shard_in_capitals_is_a_shard_to_a_second_run_and_to_prune(clips: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shard = write_shard(folder / "S.TAR", {"0.mp4": clips[0], "1.mp4": b"no video"})
    first = index(tmp_path / "s", shard)
    second = index(tmp_path / "s", shard)
    assert [path for path, _ in second.failed] == [path for path, _ in first.failed] == [f"{shard}!1.mp4"]
    (folder / "2.mp4").write_bytes(clips[2])
    assert index(tmp_path / "s", folder, prune=True).removed == 0
    assert {"0", "2"} <= set(videos_of(tmp_path / "s"))


@pytest.mark.parametrize("query", ["?sig=1", "?sig=a!b"])
def test_a_signed_url_is_a_shard_to_a_second_run(clips: list[bytes], tmp_path: Path, query: str) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.mp4": clips[0], "1.mp4": b"no video"})
    served = Served(content=shard.read_bytes())
    with serving({f"/a.tar{query}": served}) as url:
        name = f"{url}/a.tar{query}"
        first = index(tmp_path / "s", name, protocols=HTTP)
        again = index(tmp_path / "s", name, protocols=HTTP)
        assert [path for path, _ in again.failed] == [path for path, _ in first.failed] == [f"{name}!1.mp4"]
        index(tmp_path / "s", name, protocols=HTTP, retry_failed=True, keep_media=True)
    videos = videos_of(tmp_path / "s")
    assert (tmp_path / "s" / "media" / f"{videos['0'].video_id}.mp4").read_bytes() == clips[0]


def test_a_removed_video_is_indexed_again_and_the_others_are_not(clips: list[bytes], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a!b.tar", {"0.mp4": clips[0], "1.mp4": clips[1], "0.txt": "x"})
    other = write_shard(tmp_path / "c.tar", {"2.mp4": clips[2]})
    index(tmp_path / "s", shard, other, keep_media=True)
    video_id = remove(tmp_path / "s", "0")
    assert completeness(tmp_path / "s") == {"a!b.tar": False, "c.tar": True}
    encoder = FakeEncoder()
    report = index(tmp_path / "s", shard, other, encoder=encoder, keep_media=True)
    assert (report.indexed, report.captions, encoder.encoded_segments) == (1, 1, 1)
    video = videos_of(tmp_path / "s")["0"]
    assert video.paths == (f"{shard}!0.mp4", str(tmp_path / "s" / "media" / f"{video_id}.mp4"))
    assert completeness(tmp_path / "s") == {"a!b.tar": True, "c.tar": True}
    assert index(tmp_path / "s", shard, other, keep_media=True).manifest == report.manifest


def test_a_removed_video_of_a_url_is_indexed_again(clips: list[bytes], tmp_path: Path) -> None:
    with serving({"/0.mp4": Served(content=clips[0])}) as url:
        index(tmp_path / "s", f"{url}/0.mp4", protocols=HTTP)
        remove(tmp_path / "s", "0")
        assert index(tmp_path / "s", f"{url}/0.mp4", protocols=HTTP).indexed == 1


def test_a_pruned_shard_that_comes_back_unchanged_is_read(clips: list[bytes], tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "in.tar", {"0.mp4": clips[0]})
    index(tmp_path / "s", shard)
    away = shard.rename(tmp_path / "away")
    assert index(tmp_path / "s", tmp_path, prune=True, force_prune=True).removed == 1
    away.rename(shard)
    assert index(tmp_path / "s", shard).indexed == 1


def test_a_shard_whose_name_is_no_utf8_stops_nothing(clips: list[bytes], tmp_path: Path) -> None:
    bad = write_shard(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tar")), {"0.mp4": clips[0]})
    good = write_shard(tmp_path / "a.tar", {"1.mp4": clips[1]})
    report = index(tmp_path / "s", bad, good)
    assert report.indexed == 1
    assert report.failed == [(str(bad), "the name is not valid UTF-8; rename it")]


def test_copies_that_a_killed_run_left_go_when_the_store_is_opened(tmp_path: Path, clips: list[bytes]) -> None:
    index(tmp_path / "s", write_shard(tmp_path / "a.tar", {"0.mp4": clips[0]}))
    left = tmp_path / "s" / download_buffer.FOLDER / "staged-0"
    left.parent.mkdir()
    left.write_bytes(clips[0])
    with StoreWriter.open(tmp_path / "s"):
        assert not left.parent.exists()
