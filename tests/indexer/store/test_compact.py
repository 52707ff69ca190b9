"""Space of removed videos given back: same answers, same ids, old readers go on, whenever it is killed or fails."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from index_support import FakeEncoder, contents, fill, location_of, settings
from store_steps import compact_store, make_loose

from indexer.errors import Damaged, StoreError
from indexer.store import generation
from indexer.store.compact import compact, drop_former, loose_shards, waiting_bytes
from indexer.store.reader import StoreReader
from indexer.store.shards import FRAMES, ShardWriter
from indexer.store.snapshot import Snapshot
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("loose") / "store"
    make_loose(store)
    return store


@pytest.fixture
def store(loose: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(loose, tmp_path / "store"))


def features(store: Path) -> set[str]:
    return {path.name for path in (store / "features").iterdir()}


def size(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "features").iterdir())


def ids_of(store: Path) -> tuple[list[int], list[int]]:
    with StoreReader.open(store) as reader:
        return reader.segment_ids().tolist(), reader.caption_ids().tolist()


def test_answers_and_ids_stay_and_the_space_is_gained(store: Path) -> None:
    expected, ids, before = contents(store), ids_of(store), size(store)
    with StoreWriter.open(store) as writer:
        done = compact(writer)
        writer.publish(FakeEncoder())
        assert 0 < waiting_bytes(writer) <= done.before_bytes
        drop_former(writer)
        assert waiting_bytes(writer) == 0
    assert contents(store) == expected
    assert ids_of(store) == ids
    assert done.shards > 3
    assert before - size(store) == done.before_bytes - done.after_bytes > 0
    found = verify(store)
    assert (found.problems, found.notes) == ([], [])


def test_nothing_is_left_to_do_the_second_time(store: Path) -> None:
    compact_store(store)
    before = features(store)
    with StoreWriter.open(store) as writer:
        assert compact(writer).shards == 0
    assert features(store) == before


def test_shards_without_unused_rows_stay_as_they_are(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        before = writer.catalogue.shard_rows(FRAMES.name)
        loose = loose_shards(writer.catalogue, FRAMES)
        assert 0 < len(loose) < len(before)
        compact(writer)
        after = writer.catalogue.shard_rows(FRAMES.name)
    assert before.keys() - after.keys() == loose.keys()
    assert {n: rows for n, rows in after.items() if n in before} == {n: before[n] for n in before if n not in loose}


def test_old_shards_go_with_the_last_generation_that_names_them(store: Path) -> None:
    old = set(generation.read_current(store).shards)
    compact_store(store)
    assert old <= features(store), "the former generation still names them"
    with StoreWriter.open(store) as writer:
        writer.publish(FakeEncoder())
    assert not old <= features(store)
    assert verify(store).problems == []


def test_a_reader_of_the_former_generation_goes_on(store: Path) -> None:
    with StoreReader.open(store) as reader:
        ids = reader.segment_ids()
        expected = reader.segment_features(ids)[0]
        with StoreWriter.open(store) as writer:
            compact(writer)
            between = reader.refreshed()
            assert between is not None, "the catalogue has a new revision"
            assert between.overlay_rows == 0, "nothing that can be found has changed"
            np.testing.assert_array_equal(between.segment_features(ids)[0], expected)
            between.close()
            fill(writer, [20])
            with StoreReader.open(store) as newer:
                assert len(newer.segment_ids()) == len(ids) + 3
            writer.publish(FakeEncoder())
            drop_former(writer)
        np.testing.assert_array_equal(reader.segment_features(ids)[0], expected)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("over", [False, True])
def test_a_reader_whose_generation_is_gone_answers_every_thread(store: Path, used: bool, over: bool) -> None:
    """Also threads that ask for the first time, and titles, for which SQLite calls Python while others wait for it."""
    with StoreWriter.open(store) as writer:
        if over:
            writer.edit_video(location_of(1).video_id, title="changed")
        with StoreReader.open(store) as reader, StoreReader.open(store) as other:
            expected = other.list_videos(), other.select_segments(tags=["odd"]).tolist(), other.list_captions()
            if used:
                reader.list_videos()
            writer.remove_videos([location_of(2).video_id])
            compact(writer)
            writer.publish(FakeEncoder())
            drop_former(writer)
            assert [path.name for path in generation.kept(store)] == [generation.current_name(store)]
            queries = reader.segment_embeddings(reader.segment_ids())[:3]
            together = threading.Barrier(6)

            def ask(_: int) -> tuple[object, ...]:
                together.wait()
                for _ in range(20):
                    found = reader.list_videos(), reader.select_segments(tags=["odd"]).tolist(), reader.list_captions()
                    assert reader.list_videos(title="no such title") == []
                    reader.stored_features(reader.search_videos(queries, 3)[1])
                return repr(found[0]), *found[1:]

            with ThreadPoolExecutor(6) as pool:
                assert list(pool.map(ask, range(6))) == [(repr(expected[0]), *expected[1:])] * 6


def test_a_generation_that_went_while_it_was_opened_is_told_as_such(store: Path) -> None:
    folder = generation.kept(store)[-1]
    shutil.rmtree(folder)
    with pytest.raises(Damaged, match=r"snapshot\.db is missing"):
        Snapshot(folder / generation.SNAPSHOT)


def test_changes_that_were_not_published_are_still_seen(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        writer.remove_videos([location_of(1).video_id])
        writer.edit_video(location_of(2).video_id, title="new")
        compact(writer)
    with StoreReader.open(store) as reader:
        assert reader.video(location_of(1).video_id) is None
        video = reader.video(location_of(2).video_id)
        assert video is not None
        assert video.title == "new"
    assert verify(store).problems == []


def test_an_emptied_store_can_be_compacted_and_filled_again(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, settings=settings()) as writer:
        fill(writer, range(2))
        writer.publish(FakeEncoder())
        writer.remove_videos([location_of(number).video_id for number in range(2)])
        compact(writer)
    with StoreReader.open(tmp_path) as reader:
        assert len(reader.segment_ids()) == 0
    with StoreWriter.open(tmp_path) as writer:
        fill(writer, range(3))
        writer.publish(FakeEncoder())
    with StoreReader.open(tmp_path) as reader:
        assert reader.counts.videos == 3
    assert verify(tmp_path).problems == []


def test_a_full_disk_leaves_everything_as_it_was(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, before = contents(store), features(store)
    append, calls = ShardWriter.append, [0]

    def full(self: ShardWriter, rows_ND: np.ndarray) -> object:
        calls[0] += 1
        if calls[0] == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, rows_ND)

    monkeypatch.setattr(ShardWriter, "append", full)
    with StoreWriter.open(store) as writer:
        with pytest.raises(StoreError, match=r"was not compacted and is unchanged.*No space left on device"):
            compact(writer)
        monkeypatch.undo()
        assert features(store) == before
        fill(writer, [30])
        writer.remove_videos([location_of(30).video_id])
    assert verify(store).problems == []
    compact_store(store)
    assert contents(store) == expected


def test_too_little_space_is_told_before_anything_is_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with StoreWriter.open(store) as writer, pytest.raises(StoreError, match=r"bytes are needed, 10 are free"):
        compact(writer)


def test_damaged_rows_are_not_copied(store: Path) -> None:
    for path in (store / "features").glob("0*.npy"):
        content = bytearray(path.read_bytes())
        content[128:] = bytes(len(content) - 128)
        path.write_bytes(content)
    before = features(store)
    with StoreWriter.open(store) as writer, pytest.raises(Damaged, match="nothing was compacted"):
        compact(writer)
    assert features(store) == before


def test_killed_before_every_step_that_makes_something_durable(tmp_path: Path, loose: Path) -> None:
    script = Path(__file__).parents[2] / "support" / "store_steps.py"
    subprocess.run([sys.executable, str(script), "compact", str(tmp_path)], check=True, timeout=200)
    stores = sorted((tmp_path / "killed").iterdir(), key=lambda path: int(path.name))
    assert len(stores) > 8
    expected, ids = contents(loose), ids_of(loose)
    for store in stores:
        assert verify(store).problems == [], store.name
        assert contents(store) == expected, store.name
        compact_store(store)
        assert contents(store) == expected, store.name
        assert ids_of(store) == ids
        assert verify(store).problems == [], store.name
