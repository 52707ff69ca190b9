"""Folders that are watched: what is added, changed, moved, growing or unmounted."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from indexer.build.watch import Settling, watch_folders
from indexer.errors import StoreLocked
from indexer.store.reader import StoreReader


@contextmanager
def watching(folders, index, **options):
    """A watch in a thread; ends with the block."""
    stop = threading.Event()
    options = {"settle_seconds": 0.3, "rescan_seconds": 600.0, **options}
    thread = threading.Thread(target=watch_folders, args=(folders, index), kwargs={**options, "stop": stop})
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def wait_until(holds, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Runs(list):
    """What each run was given: the names of the files that it could see, and those that it had to leave out."""

    def __call__(self, folders, unsettled):
        seen = {path.name for folder in folders for path in folder.iterdir()} - {path.name for path in unsettled}
        self.append((seen, {path.name for path in unsettled}))


def test_a_file_is_settled_when_it_has_not_changed_for_long_enough(tmp_path):
    now = [0.0]
    settling = Settling(settle_seconds=5, clock=lambda: now[0])
    growing, done = tmp_path / "growing", tmp_path / "done"
    growing.write_bytes(b"1")
    done.write_bytes(b"1")
    assert not settling.settled()
    settling.note([growing, done])
    now[0] = 4
    growing.write_bytes(b"12")
    assert not settling.settled()
    now[0] = 6
    assert settling.settled()
    assert settling.take() == {growing}
    assert not settling.settled()
    now[0] = 9
    assert settling.settled()
    assert settling.take() == frozenset()


def test_folders_are_indexed_at_once_and_after_each_change(tmp_path):
    folder, runs = tmp_path / "videos", Runs()
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    with watching([folder], runs):
        wait_until(lambda: len(runs) == 1, "the first run")
        assert runs[0] == ({"a"}, set())
        (folder / "b").write_bytes(b"b")
        wait_until(lambda: runs[-1] == ({"a", "b"}, set()), "a run with the new file")
        (folder / "a").rename(folder / "c")
        wait_until(lambda: runs[-1] == ({"b", "c"}, set()), "a run after the move")
        (folder / "b").unlink()
        wait_until(lambda: runs[-1] == ({"c"}, set()), "a run after the removal")


def test_a_growing_file_waits_and_keeps_no_other_waiting(tmp_path):
    folder, runs = tmp_path / "videos", Runs()
    folder.mkdir()
    with watching([folder], runs, settle_seconds=2.0):
        wait_until(lambda: runs, "the first run")
        (folder / "done").write_bytes(b"whole")
        with (folder / "growing").open("wb") as file:
            deadline = time.monotonic() + 60
            while runs[-1] != ({"done"}, {"growing"}):
                assert time.monotonic() < deadline, runs
                file.write(b"more")
                file.flush()
                time.sleep(0.05)
        assert all("growing" not in seen for seen, _ in runs)
        wait_until(lambda: runs[-1] == ({"done", "growing"}, set()), "a run with the finished file")


def test_a_folder_that_disappears_is_waited_for(tmp_path, caplog):
    folder, away, runs = tmp_path / "mount", tmp_path / "away", Runs()
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    with watching([folder], runs):
        wait_until(lambda: runs, "the first run")
        folder.rename(away)
        wait_until(lambda: "is its disk mounted?" in caplog.text, "a warning")
        assert all(seen == {"a"} for seen, _ in runs), "no run may see an empty library"
        (away / "b").write_bytes(b"b")
        away.rename(folder)
        wait_until(lambda: runs[-1] == ({"a", "b"}, set()), "a run after it came back")


def test_a_locked_store_is_tried_again_and_changes_are_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("indexer.build.watch.RETRY_SECONDS", 0.2)
    folder, calls = tmp_path / "videos", []
    folder.mkdir()

    def index(folders, unsettled):
        calls.append(1)
        if len(calls) < 3:
            raise StoreLocked("another process writes")

    with watching([folder], index):
        wait_until(lambda: len(calls) == 3, "the third attempt")
        time.sleep(0.5)
        assert len(calls) == 3, "a run that succeeded is not repeated"


def test_another_error_ends_the_watch(tmp_path):
    def index(folders, unsettled):
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        watch_folders([tmp_path], index, stop=threading.Event())


@pytest.mark.slow
def test_the_command_indexes_what_comes_and_ends_on_sigterm(clips, tiny_checkpoint, tmp_path):
    folder, store = tmp_path / "videos", tmp_path / "store"
    folder.mkdir()
    base = [sys.executable, "-W", "error", "-m", "service.cli", "index"]
    subprocess.run([*base, "create", "--store", store, "--model", tiny_checkpoint], check=True, capture_output=True)

    def videos():
        if not (store / "CURRENT").exists():
            return 0
        with StoreReader.open(store) as reader:
            return reader.manifest.counts.videos

    command = [*base, "watch", folder, "--store", store, "--settle-seconds", "0.5", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            (folder / "one.mp4").write_bytes((clips / "0.mp4").read_bytes())
            wait_until(lambda: videos() == 1, "the first video", 120)
            (folder / "two.mp4").write_bytes((clips / "long.mp4").read_bytes())
            wait_until(lambda: videos() == 2, "the second video", 120)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
