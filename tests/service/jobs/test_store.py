"""The job store: what is accepted stays, one of many starts a job, and only the dead are declared lost."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.errors import Conflict, NotFound
from service.jobs.record import JobProgress
from service.jobs.store import JobStore

ME = {"pid": os.getpid(), "host": "here"}


@pytest.fixture
def job_store(tmp_path):
    made = JobStore(tmp_path / "jobs")
    yield made
    made.close()


def test_nothing_is_made_before_the_first_job(job_store):
    assert job_store.list() == []
    assert job_store.counts()["queued"] == 0
    assert job_store.find_lost() == []
    with pytest.raises(NotFound):
        job_store.get("0" * 16)
    assert not job_store.folder.exists()


def test_a_job_is_on_the_disk_with_its_files_when_it_is_accepted(job_store):
    job = job_store.create("train", {"a": [1, "x"]}, key_name="me", resumable=True, files={"config.json": b"{}"})
    other = JobStore(job_store.folder)
    found = other.get(job.job_id)
    assert found == job
    assert (found.state, found.kind, found.parameters, found.key_name) == ("queued", "train", {"a": [1, "x"]}, "me")
    assert (other.job_folder(job.job_id) / "config.json").read_bytes() == b"{}"
    other.close()


def test_a_life_that_ends_well(job_store):
    job_id = job_store.create("index", {}).job_id
    started = job_store.start(job_id, **ME)
    assert (started.state, started.attempts, started.pid, started.host) == ("running", 1, os.getpid(), "here")
    job_store.progress(job_id, 3, 10, "videos")
    assert job_store.get(job_id).progress == JobProgress(done=3, total=10, note="videos")
    job_store.append_log(job_id, "a line")
    assert job_store.log_path(job_id).read_text() == "a line\n"
    job_store.succeed(job_id, {"n": 1})
    ended = job_store.get(job_id)
    assert (ended.state, ended.result, ended.error, ended.resumable) == ("succeeded", {"n": 1}, None, False)
    assert ended.ended >= ended.started >= ended.created


def test_what_has_ended_does_not_change(job_store):
    job_id = job_store.create("index", {}, resumable=True).job_id
    job_store.start(job_id, **ME)
    job_store.succeed(job_id, {})
    for action in (
        lambda: job_store.fail(job_id, "late"),
        lambda: job_store.succeed(job_id, {"other": 1}),
        lambda: job_store.cancel(job_id),
        lambda: job_store.resume(job_id),
        lambda: job_store.start(job_id, **ME),
    ):
        with pytest.raises(Conflict, match="succeeded"):
            action()
    job_store.progress(job_id, 1, 2, "late")
    assert job_store.get(job_id).result == {}
    assert job_store.get(job_id).progress == JobProgress()


def test_of_many_claims_one_succeeds(job_store):
    job_id = job_store.create("index", {}).job_id
    stores = [JobStore(job_store.folder) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda each: each.claim(job_id, **ME), stores))
    assert sum(claim is not None for claim in claims) == 1
    assert job_store.get(job_id).attempts == 1
    for each in stores:
        each.close()


def test_cancel_resume_and_forget(job_store):
    job_id = job_store.create("train", {}, resumable=True).job_id
    assert job_store.cancel(job_id).state == "cancelled"
    assert job_store.cancel(job_id).state == "cancelled"  # asking twice is no error
    assert job_store.get(job_id).resumable
    assert job_store.resume(job_id).state == "queued"
    job_store.start(job_id, **ME)
    assert job_store.cancel(job_id).stopping
    with pytest.raises(Conflict):
        job_store.forget(job_id)
    job_store.end_cancelled(job_id)
    assert (job_store.get(job_id).state, job_store.get(job_id).stopping) == ("cancelled", False)
    job_store.forget(job_id)
    assert not job_store.job_folder(job_id).exists()
    with pytest.raises(NotFound):
        job_store.get(job_id)


def test_a_job_that_cannot_continue_says_so(job_store):
    job_id = job_store.create("add-video", {}).job_id
    job_store.start(job_id, **ME)
    job_store.fail(job_id, "the upload is gone")
    assert not job_store.get(job_id).resumable
    with pytest.raises(Conflict):
        job_store.resume(job_id)


def test_pages_are_newest_first_and_filtered(job_store):
    ids = [job_store.create("train" if n % 2 else "index", {"n": n}).job_id for n in range(5)]
    job_store.cancel(ids[0])
    assert [job.job_id for job in job_store.list()] == ids[::-1]
    assert [job.job_id for job in job_store.list(offset=1, limit=2)] == [ids[3], ids[2]]
    assert [job.job_id for job in job_store.list(kind="train")] == [ids[3], ids[1]]
    assert [job.job_id for job in job_store.list(state="cancelled")] == [ids[0]]
    assert (job_store.count(), job_store.count(state="queued", kind="index")) == (5, 2)
    assert [job.job_id for job in job_store.queued(["index"])] == [ids[2], ids[4]]


def test_who_refers_to_a_job(job_store):
    made = job_store.create("train", {}).job_id
    user = job_store.create("index", {"model": made}).job_id
    job_store.create("index", {"model": "demo"})
    assert [job.job_id for job in job_store.referring(made)] == [user]


HOLDER = """
import sys, time
from pathlib import Path
from service.jobs.store import JobStore
store = JobStore(Path(sys.argv[1]))
store.start(sys.argv[2], pid=1, host="elsewhere")
print("started", flush=True)
time.sleep(1000)
"""


def test_only_a_job_whose_process_is_gone_is_lost(job_store, monkeypatch):
    job_id = job_store.create("add-video", {}).job_id
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(job_store.folder), job_id], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"started\n"
        # Neither a clock that jumps by years, nor a process number of another container, nor silence means death.
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert job_store.find_lost() == []
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert job_store.find_lost() == []
        assert job_store.get(job_id).state == "running"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert [job.job_id for job in job_store.find_lost()] == [job_id]
    lost = job_store.get(job_id)
    assert lost.state == "lost"
    assert "without a result" in lost.error
    assert job_store.find_lost() == []


def test_the_lock_is_free_again_after_every_end(job_store):
    for end in (
        lambda job_id: job_store.succeed(job_id, {}),
        lambda job_id: job_store.fail(job_id, "x"),
        job_store.end_cancelled,
        job_store.requeue,
    ):
        job_id = job_store.create("train", {}, resumable=True).job_id
        job_store.start(job_id, **ME)
        assert job_store.find_lost() == []
        end(job_id)
        with pytest.raises(KeyError):
            job_store.alive_descriptor(job_id)
    job_id = job_store.create("train", {}).job_id
    job_store.start(job_id, **ME)
    job_store.close()
    assert [job.job_id for job in job_store.find_lost()] == [job_id]


def test_a_full_disk_accepts_nothing_and_loses_nothing(job_store):
    kept = job_store.create("train", {}).job_id
    pages = job_store.database().execute("PRAGMA page_count").fetchone()[0]
    job_store.database().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error, match="full"):
        job_store.create("train", {"long": "x" * 1_000_000})
    assert job_store.get(kept).state == "queued"
    job_store.database().execute("PRAGMA max_page_count = 1000000")
    folders = {path.name for path in job_store.folder.iterdir() if path.is_dir()}
    assert folders == {job.job_id for job in job_store.list(limit=1000)}


def test_a_newer_book_is_refused_by_name(job_store):
    job_store.create("train", {})
    job_store.close()
    with sqlite3.connect(job_store.folder / "jobs.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="format 99"):
        job_store.list()


def test_the_command_line_looks_after_the_book(job_store):
    def emcl(*words):
        return CliRunner().invoke(app, [*words, "--jobs-folder", str(job_store.folder)])

    assert emcl("jobs", "list").output == ""
    first = job_store.create("train", {"a": 1}, resumable=True).job_id
    second = job_store.create("index", {}, resumable=True).job_id
    job_store.append_log(first, "one\ntwo")
    lines = emcl("jobs", "list").output.splitlines()
    assert [line.split()[:3] for line in lines] == [[second, "index", "queued"], [first, "train", "queued"]]
    assert json.loads(emcl("jobs", "show", first).output)["parameters"] == {"a": 1}
    assert emcl("jobs", "log", first).output == "one\ntwo\n"
    assert "cancelled" in emcl("jobs", "cancel", first).output
    assert [job["job_id"] for job in json.loads(emcl("jobs", "list", "--state", "cancelled", "--json").output)] == [
        first
    ]
    assert emcl("jobs", "log", first, "--follow").output == "one\ntwo\n"
    assert "queued" in emcl("jobs", "resume", first).output
    assert isinstance(emcl("jobs", "show", "0" * 16).exception, NotFound)
    job_store.start(first, **ME)
    assert "being stopped" in emcl("jobs", "cancel", first).output
