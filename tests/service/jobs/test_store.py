"""The book of jobs: what is accepted stays, one of many starts a job, and only the dead are declared lost."""

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
from service.jobs.store import JobBook

ME = {"pid": os.getpid(), "host": "here"}


@pytest.fixture
def book(tmp_path):
    made = JobBook(tmp_path / "jobs")
    yield made
    made.close()


def test_nothing_is_made_before_the_first_job(book):
    assert book.list() == []
    assert book.counts()["queued"] == 0
    assert book.find_lost() == []
    with pytest.raises(NotFound):
        book.get("0" * 16)
    assert not book.folder.exists()


def test_a_job_is_on_the_disk_with_its_files_when_it_is_accepted(book):
    job = book.create("train", {"a": [1, "x"]}, key_name="me", resumable=True, files={"config.json": b"{}"})
    other = JobBook(book.folder)
    found = other.get(job.job_id)
    assert found == job
    assert (found.state, found.kind, found.parameters, found.key_name) == ("queued", "train", {"a": [1, "x"]}, "me")
    assert (other.job_folder(job.job_id) / "config.json").read_bytes() == b"{}"
    assert other.name == book.name
    other.close()


def test_a_life_that_ends_well(book):
    job_id = book.create("index", {}).job_id
    started = book.start(job_id, **ME)
    assert (started.state, started.attempts, started.pid, started.host) == ("running", 1, os.getpid(), "here")
    book.progress(job_id, 3, 10, "videos")
    assert book.get(job_id).progress == JobProgress(done=3, total=10, note="videos")
    book.append_log(job_id, "a line")
    assert book.log_path(job_id).read_text() == "a line\n"
    book.succeed(job_id, {"n": 1})
    ended = book.get(job_id)
    assert (ended.state, ended.result, ended.error, ended.resumable) == ("succeeded", {"n": 1}, None, False)
    assert ended.ended >= ended.started >= ended.created


def test_what_has_ended_does_not_change(book):
    job_id = book.create("index", {}, resumable=True).job_id
    book.start(job_id, **ME)
    book.succeed(job_id, {})
    for action in (
        lambda: book.fail(job_id, "late"),
        lambda: book.succeed(job_id, {"other": 1}),
        lambda: book.cancel(job_id),
        lambda: book.resume(job_id),
        lambda: book.start(job_id, **ME),
    ):
        with pytest.raises(Conflict, match="succeeded"):
            action()
    book.progress(job_id, 1, 2, "late")
    assert book.get(job_id).result == {}
    assert book.get(job_id).progress == JobProgress()


def test_of_many_claims_one_succeeds(book):
    job_id = book.create("index", {}).job_id
    books = [JobBook(book.folder) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda each: each.claim(job_id, **ME), books))
    assert sum(claim is not None for claim in claims) == 1
    assert book.get(job_id).attempts == 1
    for each in books:
        each.close()


def test_cancel_resume_and_forget(book):
    job_id = book.create("train", {}, resumable=True).job_id
    assert book.cancel(job_id).state == "cancelled"
    assert book.cancel(job_id).state == "cancelled"  # asking twice is no error
    assert book.get(job_id).resumable
    assert book.resume(job_id).state == "queued"
    book.start(job_id, **ME)
    assert book.cancel(job_id).stopping
    with pytest.raises(Conflict):
        book.forget(job_id)
    book.end_cancelled(job_id)
    assert (book.get(job_id).state, book.get(job_id).stopping) == ("cancelled", False)
    book.forget(job_id)
    assert not book.job_folder(job_id).exists()
    with pytest.raises(NotFound):
        book.get(job_id)


def test_a_job_that_cannot_continue_says_so(book):
    job_id = book.create("add-video", {}).job_id
    book.start(job_id, **ME)
    book.fail(job_id, "the upload is gone")
    assert not book.get(job_id).resumable
    with pytest.raises(Conflict):
        book.resume(job_id)


def test_pages_are_newest_first_and_filtered(book):
    ids = [book.create("train" if n % 2 else "index", {"n": n}).job_id for n in range(5)]
    book.cancel(ids[0])
    assert [job.job_id for job in book.list()] == ids[::-1]
    assert [job.job_id for job in book.list(offset=1, limit=2)] == [ids[3], ids[2]]
    assert [job.job_id for job in book.list(kind="train")] == [ids[3], ids[1]]
    assert [job.job_id for job in book.list(state="cancelled")] == [ids[0]]
    assert (book.count(), book.count(state="queued", kind="index")) == (5, 2)
    assert [job.job_id for job in book.queued(["index"])] == [ids[2], ids[4]]


def test_who_refers_to_a_job(book):
    made = book.create("train", {}).job_id
    user = book.create("index", {"model": made}).job_id
    book.create("index", {"model": "demo"})
    assert [job.job_id for job in book.referring(made)] == [user]


HOLDER = """
import sys, time
from pathlib import Path
from service.jobs.store import JobBook
book = JobBook(Path(sys.argv[1]))
book.start(sys.argv[2], pid=1, host="elsewhere")
print("started", flush=True)
time.sleep(1000)
"""


def test_only_a_job_whose_process_is_gone_is_lost(book, monkeypatch):
    job_id = book.create("add-video", {}).job_id
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(book.folder), job_id], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"started\n"
        # Neither a clock that jumps by years, nor a process number of another container, nor silence means death.
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert book.find_lost() == []
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert book.find_lost() == []
        assert book.get(job_id).state == "running"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert [job.job_id for job in book.find_lost()] == [job_id]
    lost = book.get(job_id)
    assert lost.state == "lost"
    assert "without saying how" in lost.error
    assert book.find_lost() == []


def test_the_lock_is_free_again_after_every_end(book):
    for end in (
        lambda job_id: book.succeed(job_id, {}),
        lambda job_id: book.fail(job_id, "x"),
        book.end_cancelled,
        book.requeue,
    ):
        job_id = book.create("train", {}, resumable=True).job_id
        book.start(job_id, **ME)
        assert book.find_lost() == []
        end(job_id)
        with pytest.raises(KeyError):
            book.alive_descriptor(job_id)
    job_id = book.create("train", {}).job_id
    book.start(job_id, **ME)
    book.close()
    assert [job.job_id for job in book.find_lost()] == [job_id]


def test_a_full_disk_accepts_nothing_and_loses_nothing(book):
    kept = book.create("train", {}).job_id
    pages = book._database().execute("PRAGMA page_count").fetchone()[0]
    book._database().execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.Error, match="full"):
        book.create("train", {"long": "x" * 1_000_000})
    assert book.get(kept).state == "queued"
    book._database().execute("PRAGMA max_page_count = 1000000")
    folders = {path.name for path in book.folder.iterdir() if path.is_dir()}
    assert folders == {job.job_id for job in book.list(limit=1000)}


def test_a_newer_book_is_refused_by_name(book):
    book.create("train", {})
    book.close()
    with sqlite3.connect(book.folder / "jobs.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ValueError, match="format 99"):
        book.list()


def test_the_command_line_looks_after_the_book(book):
    def emcl(*words):
        return CliRunner().invoke(app, [*words, "--jobs-folder", str(book.folder)])

    assert emcl("jobs", "list").output == ""
    first = book.create("train", {"a": 1}, resumable=True).job_id
    second = book.create("index", {}, resumable=True).job_id
    book.append_log(first, "one\ntwo")
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
    book.start(first, **ME)
    assert "being stopped" in emcl("jobs", "cancel", first).output
