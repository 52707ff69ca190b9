"""Pipes, sockets and devices among the files: nothing waits for them, and a run that hangs can be ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from index_support import by_name, index, make_clip

from indexer.errors import CaptionFileError
from indexer.sources.captions import read_caption_file
from model.durable import open_regular


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "0.mp4", 0, seconds=0.5)
    return tmp_path / "videos"


@pytest.mark.timeout(60)
def test_pipes_in_a_folder_are_reported_and_not_waited_for(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "pipe.mp4")
    os.mkfifo(tmp_path / "elsewhere")
    (folder / "link.mp4").symlink_to(tmp_path / "elsewhere")
    (folder / "device.mp4").symlink_to("/dev/zero")
    os.mkfifo(folder / "0.txt")  # a sidecar
    os.mkfifo(folder / "shard.tar")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.mp4"))
        report = index(tmp_path / "s", folder, folder / "shard.tar")
    names = {Path(path).name: reason for path, reason in report.failed}
    assert names.keys() == {"pipe.mp4", "link.mp4", "device.mp4", "socket.mp4", "shard.tar"}
    assert all("regular file" in reason or name == "socket.mp4" for name, reason in names.items()), names
    assert by_name(tmp_path / "s")["0.mp4"].state == "indexed"


@pytest.mark.timeout(60)
def test_a_pipe_as_a_caption_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "captions.jsonl")
    with pytest.raises(CaptionFileError, match="not a regular file"):
        read_caption_file(tmp_path / "captions.jsonl")


@pytest.mark.timeout(60)
def test_only_regular_files_are_opened_also_behind_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "link") as file:
        assert os.get_blocking(file.fileno())
        assert file.read() == b"content"
    for other in (tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(other)


HANGING = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from indexer.cli import _interruptible
with _interruptible(), ThreadPoolExecutor(1) as pool:
    pool.submit(threading.Event().wait)  # as a read from a dead mount does
    print("hangs", flush=True)
    time.sleep(600)
"""


@pytest.mark.timeout(120)
def test_the_second_interrupt_ends_a_run_that_hangs() -> None:
    with subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "hangs\n"
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)  # the thread is waited for
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()
