"""Stores put together: what one build over everything makes, whatever is in several, whenever it is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from index_support import FakeEncoder, contents, fill, location_of, make_clip, settings, video_of
from store_steps import keep_media, make_inputs

from indexer.build.options import BuildRequest
from indexer.build.progress import Progress
from indexer.build.run import build
from indexer.errors import Damaged, NotAStore, SettingsConflict, StoreError
from indexer.locations import Location
from indexer.sources.partition import Partition
from indexer.store.merge import MergeReport, merge, read_merge_settings
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter
from model.config import SamplingConfig


def merge_into(store: Path, *inputs: Path) -> MergeReport:
    with StoreWriter.open(store, settings=read_merge_settings(inputs, store)) as writer:
        report = merge(writer, inputs)
        writer.publish(FakeEncoder())
    return report


def files_of(folder: Path) -> dict[str, str]:
    """Every file with its content, but for those that SQLite makes beside a database while it is read."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


def described(store: Path) -> str:
    """``contents`` without the name of the store, which places of media begin with."""
    return repr(contents(store)).replace(f"{store}/", "")


def media_of(store: Path) -> dict[int, bytes]:
    """What a store keeps of each video, by number."""
    return {int(path.stem, 16): path.read_bytes() for path in (store / "media").iterdir()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(10):
        make_clip(folder / f"{number}.mp4", number, seconds=2.5 if number % 4 == 0 else 0.5)
    (folder / "twin.mp4").write_bytes((folder / "3.mp4").read_bytes())
    (folder / "broken.mp4").write_bytes(b"this is no video")
    rows = [{"video": f"{n}.mp4", "captions": [f"first {n}", "the same"], "tags": [f"t{n % 2}"]} for n in range(10)]
    rows.append({"video": None, "captions": ["on its own"], "tags": []})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def build_part(store: Path, corpus: Path, part: str) -> Path:
    request = BuildRequest(
        paths=[str(corpus)], captions=corpus / "captions.jsonl", partition=Partition.parse(part), workers=2
    )
    with StoreWriter.open(store, settings=settings()) as writer:
        build(writer, FakeEncoder(), request, Progress())
    return store


def test_merged_parts_answer_as_one_build_over_everything(tmp_path: Path, corpus: Path) -> None:
    parts = [build_part(tmp_path / f"part{number}", corpus, f"{number}/3") for number in (1, 2, 3)]
    before = [files_of(part) for part in parts]
    report = merge_into(tmp_path / "merged", *parts)
    assert (report.videos, report.known_videos) in ((10, 0), (10, 1)), "a twin may be in another part"
    assert [files_of(part) for part in parts] == before
    whole = build_part(tmp_path / "whole", corpus, "1/1")
    assert contents(tmp_path / "merged") == contents(whole)
    assert verify(tmp_path / "merged").problems == []


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path)
    first = merge_into(tmp_path / "out", *inputs)
    again = merge_into(tmp_path / "out", *inputs)
    assert (first.videos, first.known_videos, first.captions) == (7, 1, 14)
    assert (again.videos, again.known_videos, again.captions) == (0, 8, 0)


def test_what_is_in_both_is_united_and_the_first_title_stays(tmp_path: Path) -> None:
    stores = [tmp_path / "one", tmp_path / "two"]
    video_id = location_of(1).video_id
    for number, store in enumerate(stores):
        with StoreWriter.open(store, settings=settings()) as writer:
            writer.add_locations([location_of(1)])
            writer.add_locations(
                [Location(path=f"/other/{number}.mp4", video_id=video_id, size_bytes=10, modified_ns=1)]
            )
            writer.add_videos([video_of(1)])
            texts = ["both", f"only {number}"]
            writer.add_captions([(video_id, text) for text in texts], FakeEncoder().encode_texts(texts))
            writer.edit_video(video_id, tags=["both", f"tag {number}"], title=f"title {number}")
    report = merge_into(tmp_path / "out", *stores)
    with StoreReader.open(tmp_path / "out") as reader:
        (video,) = reader.list_videos()
        assert video.title == "title 0"
        assert video.tags == ("both", "tag 0", "tag 1")
        assert video.paths == ("/clips/1.mp4", "/other/0.mp4", "/other/1.mp4")
        assert [caption.text for caption in video.captions] == ["both", "only 0", "only 1"]
    assert report.notes == [f"video {video_id[:12]} has another title in {stores[1]}; the first store's is kept"]


def test_a_video_that_failed_in_one_store_is_taken_from_the_other(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "one", settings=settings()) as writer:
        writer.add_locations([location_of(1), location_of(2)])
        for number in (1, 2):
            writer.fail_video(location_of(number).video_id, "it hung")
    with StoreWriter.open(tmp_path / "two", settings=settings()) as writer:
        fill(writer, [1])
    merge_into(tmp_path / "out", tmp_path / "one", tmp_path / "two")
    with StoreReader.open(tmp_path / "out") as reader:
        states = {video.video_id: (video.state, video.reason) for video in reader.list_videos(state=None)}
    assert states == {location_of(1).video_id: ("indexed", None), location_of(2).video_id: ("failed", "it hung")}


def test_media_that_a_store_keeps_goes_along(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "one", settings=settings()) as writer:
        media = keep_media(writer, 1)
        writer.add_videos([video_of(1)])
    merge_into(tmp_path / "out", tmp_path / "one")
    copied = tmp_path / "out" / "media" / media.name
    assert copied.read_bytes() == b"video 1"
    with StoreReader.open(tmp_path / "out") as reader:
        assert reader.list_videos()[0].paths == (str(copied),)


def test_media_that_did_not_fit_go_along_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(*_: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(_: Path, target: Path) -> None:
        target.write_bytes(b"vid")
        raise OSError(errno.ENOSPC, "No space left on device")

    inputs, out = make_inputs(tmp_path), tmp_path / "out"
    monkeypatch.setattr(os, "link", other_disk)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(StoreError, match=r"could not be copied to .*No space left on device.*merge again"):
            merge_into(out, *inputs)
    assert list((out / "media").iterdir()) == []
    merge_into(out, *inputs)
    assert media_of(out) == {number: b"video %d" % number for number in (1, 2, 4, 5)}


def test_stores_of_other_models_or_sampling_are_refused_by_name(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    changes = ({}, {"fingerprint": "cd" * 32, "segment_seconds": 7.0}, {"sampling": SamplingConfig(max_frames=2)})
    for store, change in zip((one, two, three), changes, strict=True):
        with StoreWriter.open(store, settings=settings(**change)) as writer:
            fill(writer, [1])
    with pytest.raises(SettingsConflict, match=r"two.*one.*fingerprint is cdcd.*abab.*segment_seconds is 7.0, there 1"):
        read_merge_settings([one, two], tmp_path / "out")
    with pytest.raises(SettingsConflict, match=r"one cannot be merged with .*three: sampling"):
        read_merge_settings([one], three)
    with pytest.raises(SettingsConflict, match="named twice"):
        read_merge_settings([one, one], tmp_path / "out")
    with pytest.raises(NotAStore, match="holds no store"):
        read_merge_settings([one, tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_features_are_not_copied(tmp_path: Path) -> None:
    one, two = make_inputs(tmp_path)
    shard = max((two / "features").glob("[0-9]*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(Damaged, match=r"two: the features of video .* are not what was written"):
        merge_into(tmp_path / "out", one, two)
    assert verify(tmp_path / "out").problems == []


def test_a_killed_merge_is_continued_by_running_it_again(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "support" / "store_steps.py"
    subprocess.run([sys.executable, str(script), "merge", str(tmp_path)], check=True, timeout=200)
    *killed, whole = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.name))
    assert len(killed) > 10
    inputs = [tmp_path / "inputs" / name for name in ("one", "two")]
    expected, media = described(whole), media_of(whole)
    assert len(media) == 4
    for store in killed:
        if (store / "catalogue.db").exists():
            assert verify(store).problems == [], store.name
        merge_into(store, *inputs)
        assert described(store) == expected, store.name
        assert media_of(store) == media, store.name
