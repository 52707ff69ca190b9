"""Backups of stores: one consistent state, whatever is written meanwhile; restored anywhere, damage refused."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from index_support import FakeEncoder, contents, fill, location_of, settings

from indexer.errors import Damaged, NotAStore
from indexer.store import backup as module
from indexer.store import generation
from indexer.store.backup import BackupError, back_up, read_listing, restore
from indexer.store.compact import compact
from indexer.store.reader import StoreReader
from indexer.store.verify import verify
from indexer.store.writer import StoreWriter


@pytest.fixture
def store(tmp_path):
    with StoreWriter.open(tmp_path / "store", settings=settings()) as writer:
        fill(writer, range(4))
        writer.publish(FakeEncoder())
        fill(writer, range(6))  # committed, not published
    return tmp_path / "store"


def test_a_backup_and_what_is_restored_of_it_answer_as_the_store_did(store, tmp_path):
    expected = contents(store)
    done = []
    listing = back_up(store, tmp_path / "backup", done.append)
    assert contents(tmp_path / "backup") == expected
    assert (listing.videos, listing.captions) == (6, 12)
    assert sum(done) >= sum(path.stat().st_size for path in (store / "generations").rglob("*") if path.is_file())
    shutil.rmtree(store)
    restore(tmp_path / "backup", tmp_path / "elsewhere" / "store")
    assert contents(tmp_path / "elsewhere" / "store") == expected
    assert verify(tmp_path / "elsewhere" / "store").problems == []
    with StoreWriter.open(tmp_path / "elsewhere" / "store") as writer:  # it can be written again
        fill(writer, range(7))
        writer.publish(FakeEncoder())
    with StoreReader.open(tmp_path / "elsewhere" / "store") as reader:
        assert reader.count_videos() == 7


def test_own_media_and_other_files_come_along_and_locks_do_not(store, tmp_path):
    (store / "media").mkdir()
    (store / "media" / f"{1:064x}.mp4").write_bytes(b"a video")
    (store / "query_bank.npz").write_bytes(b"a bank")
    back_up(store, tmp_path / "backup")
    names = {path.name for path in (tmp_path / "backup").iterdir()}
    assert (tmp_path / "backup" / "media" / f"{1:064x}.mp4").read_bytes() == b"a video"
    assert "query_bank.npz" in names
    assert not any(name.startswith("writer") or name.endswith((".lock", "-wal", "-shm")) for name in names)


def test_a_store_that_is_written_published_and_compacted_meanwhile_gives_one_consistent_state(store, tmp_path):
    stop, failures = threading.Event(), []

    def write():
        number = 6
        try:
            while not stop.is_set():
                with StoreWriter.open(store) as writer:
                    fill(writer, range(number, number + 2))
                    writer.remove_videos([location_of(number - 3).video_id])
                    if number % 4 == 0:
                        compact(writer)
                    writer.publish(FakeEncoder())
                number += 2
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        revisions = []
        for number in range(8):
            listing = back_up(store, tmp_path / f"backup-{number}")
            revisions.append(listing.revision)
            found = verify(tmp_path / f"backup-{number}")
            assert found.problems == []
            with StoreReader.open(tmp_path / f"backup-{number}") as reader:
                assert reader.count_videos() == listing.videos
                for video in reader.list_videos(limit=1000):
                    assert len(video.segments) == 1 + int(video.video_id, 16) % 3, "a commit is whole or not there"
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert revisions == sorted(revisions)
    assert revisions[0] < revisions[-1]


def test_rows_that_were_not_committed_are_left_out(store, tmp_path):
    shard = store / "features" / "000000.npy"
    with shard.open("ab") as file:
        file.write(os.urandom(100))  # a writer that was cut short in the middle of a row
    back_up(store, tmp_path / "backup")
    assert (tmp_path / "backup" / "features" / "000000.npy").stat().st_size < shard.stat().st_size
    assert verify(tmp_path / "backup").problems == []


def test_a_file_that_always_disappears_is_an_error_and_leaves_nothing(store, tmp_path, monkeypatch):
    def vanish(source, target, on_bytes):
        raise FileNotFoundError(2, "No such file", str(source))

    monkeypatch.setattr(module, "copy_file", vanish)
    with pytest.raises(BackupError, match="changed during each of 5 attempts"):
        back_up(store, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_without_a_generation_is_copied_too(tmp_path):
    with StoreWriter.open(tmp_path / "store", settings=settings()) as writer:
        fill(writer, range(2))
    listing = back_up(tmp_path / "store", tmp_path / "backup")
    assert listing.generation is None
    restore(tmp_path / "backup", tmp_path / "again")
    with StoreWriter.open(tmp_path / "again") as writer:
        writer.publish(FakeEncoder())
    with StoreReader.open(tmp_path / "again") as reader:
        assert reader.count_videos() == 2


@pytest.mark.parametrize("name", ["catalogue.db", "features/000000.npy", "CURRENT"])
def test_a_backup_that_was_changed_is_not_restored(store, tmp_path, name):
    back_up(store, tmp_path / "backup")
    damaged = tmp_path / "backup" / name
    content = bytearray(damaged.read_bytes())
    content[-2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(Damaged, match="was changed since the backup was made"):
        restore(tmp_path / "backup", tmp_path / "again")
    damaged.unlink()
    with pytest.raises(Damaged, match="is missing"):
        restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_targets_that_exist_and_folders_that_hold_no_backup_are_refused(store, tmp_path):
    with pytest.raises(BackupError, match="not empty"):
        back_up(store, store)
    with pytest.raises(BackupError, match="holds no backup"):
        restore(store, tmp_path / "again")
    with pytest.raises(NotAStore):
        back_up(tmp_path, tmp_path / "backup")
    back_up(store, tmp_path / "backup")
    listing = tmp_path / "backup" / "backup.json"
    listing.write_text(listing.read_text().replace('"CURRENT"', '"../CURRENT"'))
    with pytest.raises(Damaged, match="outside of the backup"):
        restore(tmp_path / "backup", tmp_path / "again")
    listing.write_text(listing.read_text()[:100])
    with pytest.raises(Damaged, match="cannot be read"):
        read_listing(tmp_path / "backup")
    assert generation.CURRENT in {path.name for path in store.iterdir()}


def test_the_commands(store, tmp_path, capsys, monkeypatch):
    from service.cli import main

    for arguments in (
        ["store", "backup", "--store", str(store), "--to", str(tmp_path / "backup")],
        ["store", "restore", "--from", str(tmp_path / "backup"), "--store", str(tmp_path / "again")],
    ):
        monkeypatch.setattr("sys.argv", ["emcl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    assert "6 videos, 12 captions" in capsys.readouterr().out
    assert contents(tmp_path / "again") == contents(Path(store))
