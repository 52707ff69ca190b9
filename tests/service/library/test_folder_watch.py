"""``emcl serve --watch``: folders that a running service keeps indexed, in a process of its own."""

import shutil
import signal
import subprocess
import sys
import time

import httpx
import psutil
import pytest
from service_support import emcl_command

from service.settings import load_settings

WAIT_SECONDS = 90


def until(holds, what):
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS} s: {what}"
        time.sleep(0.1)
    return found


def titles(server):
    return {video["title"] for video in httpx.get(f"{server.url}/v1/videos").json()["videos"]}


def watchers(server):
    """The processes below the server that watch."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if "watch" in process.cmdline() and "-m" in process.cmdline()[:3]:  # not the one that guards its group
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture
def videos(clip_store, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clip_store / "clips" / "clip_0.mp4", folder)
    return folder


@pytest.fixture
def store(tiny_checkpoint, tmp_path):
    create = [sys.executable, "-m", "service.cli", "index", "create"]
    options = ["--store", tmp_path / "store", "--model", tiny_checkpoint]
    subprocess.run([*create, *options], check=True, capture_output=True)
    return tmp_path / "store"


def options_of(store, folder, tmp_path):
    return "--store", store, "--watch", folder, "--jobs-folder", tmp_path / "jobs", "--watch-seconds", 0.2


@pytest.mark.slow
def test_what_comes_into_a_watched_folder_is_found_also_after_its_process_was_killed(
    start_server, store, videos, clip_store, tmp_path
):
    server = start_server(*options_of(store, videos, tmp_path))
    until(lambda: titles(server) == {"clip_0"}, "the video that was there")
    assert httpx.get(f"{server.url}/v1/index").json()["watched_folders"] == 1
    hits = httpx.post(f"{server.url}/v1/search", json={"text": "a red circle"}).json()["hits"]
    assert [hit["title"] for hit in hits] == ["clip_0"]
    [first] = watchers(server)
    first.kill()
    trouble = until(lambda: httpx.get(f"{server.url}/health/ready").json()["trouble"], "its end is noticed")
    assert trouble == ["folder watch"]
    shutil.copy(clip_store / "clips" / "clip_1.mp4", videos)
    until(lambda: titles(server) == {"clip_0", "clip_1"}, "the video that came later")
    [second] = watchers(server)
    assert second.pid != first.pid
    assert httpx.get(f"{server.url}/health/ready").json()["trouble"] == []
    assert any("1 videos indexed" in line for line in server.said)
    server.stop()
    assert not second.is_running()


@pytest.mark.slow
def test_it_does_not_outlive_a_service_that_is_killed(start_server, store, videos, tmp_path):
    server = start_server(*options_of(store, videos, tmp_path))
    [watcher] = until(lambda: watchers(server), "the process is there")
    server.process.send_signal(signal.SIGKILL)
    until(lambda: not watcher.is_running() or watcher.status() == psutil.STATUS_ZOMBIE, "it is gone, too")


def test_a_file_is_refused_before_anything_loads(monkeypatch, capsys, store, videos):
    run = emcl_command(monkeypatch, capsys, "serve")
    code, _, err = run("--store", store, "--watch", videos / "clip_0.mp4")
    assert code == 1
    assert "clip_0.mp4 is a file, expected a folder" in err


def test_folders_are_separated_by_commas_and_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings({"watch": "~/a, /b,"}).watch == (tmp_path / "a", type(tmp_path)("/b"))
