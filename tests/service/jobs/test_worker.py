"""Workers with real processes: killed, stopped, timed out, cancelled, delivered twice, with a queue that forgets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jobs_support as support
import pytest
import typer
from jobs_support import ask, is_alive, pids, until
from training_support import TINY

from indexer.build.progress import FileProgress, Progress
from service.cli import app
from service.jobs import runner
from service.jobs.commands import PhaseProgress, command_of
from service.jobs.kinds import CalibrateJob, EvaluateJob, IndexJob, TrainJob
from service.jobs.queue import open_queue
from service.jobs.record import JobProgress
from service.jobs.service import JobDesk
from service.jobs.store import JobBook
from service.jobs.worker import Worker
from service.settings import load_settings


@pytest.fixture
def book(tmp_path):
    made = JobBook(tmp_path / "jobs")
    yield made
    made.close()


@pytest.fixture
def start(book):
    """Start workers on the book; those that still run at the end are killed."""
    started = []

    def start_one(**options):
        started.append(support.start_worker(book.folder, **options))
        return started[-1]

    yield start_one
    for process in started:
        process.stdin.close()
        process.kill()
        process.wait()


def state(book, job_id):
    return book.get(job_id).state


def ended(book, job_id, **patience):
    return until(lambda: (job := book.get(job_id)).finished and job, **patience)


def log_of(book, job_id):
    return book.log_path(job_id).read_text()


def test_a_worker_killed_mid_job_leaves_it_lost_and_it_can_be_resumed(book, start):
    job_id = ask(book, "once-then-quick")
    first = start()
    family = until(lambda: pids(book.job_folder(job_id)))
    assert state(book, job_id) == "running"
    assert book.find_lost() == []
    first.send_signal(signal.SIGKILL)
    first.wait()
    until(lambda: not any(map(is_alive, family)))  # the job and its helper die with the worker
    lost = until(book.find_lost)[0]
    assert (lost.job_id, lost.state, lost.resumable, lost.attempts) == (job_id, "lost", True, 1)
    start()
    time.sleep(0.5)
    assert state(book, job_id) == "lost"  # not by itself: --job-attempts is 1
    book.resume(job_id)
    assert ended(book, job_id).result == {"begun": 2}
    assert book.get(job_id).attempts == 2


def test_a_lost_job_is_tried_again_while_attempts_last(book, start):
    job_id = ask(book, "once-then-quick")
    first = start()
    until(lambda: pids(book.job_folder(job_id)))
    first.send_signal(signal.SIGKILL)
    start(job_attempts=2)
    assert until(lambda: state(book, job_id) == "succeeded")
    assert book.get(job_id).attempts == 2


def test_killed_by_the_system_is_tried_again_but_an_error_is_not(book, start):
    killed, dead, wrong = ask(book, "killed-once"), ask(book, "killed"), ask(book, "wrong")
    start(job_attempts=2)
    assert ended(book, killed).result == {"begun": 2}
    assert ended(book, dead).error == "killed by the system with SIGKILL (out of memory?)"
    assert book.get(dead).attempts == 2
    failed = ended(book, wrong)
    assert (failed.state, failed.error, failed.attempts) == ("failed", "there is no such thing (exit code 1)", 1)


def test_a_stopped_worker_puts_its_jobs_back(book, start):
    job_id = ask(book, "once-then-quick")
    first = start()
    until(lambda: pids(book.job_folder(job_id)))
    first.terminate()
    assert first.wait(30) == 0
    assert state(book, job_id) == "queued"
    assert "told to stop" in log_of(book, job_id)
    start()
    assert ended(book, job_id).result == {"begun": 2}


def test_a_worker_ends_with_the_service_that_started_it(book, start):
    job_id = ask(book, "hang")
    worker = start()
    until(lambda: pids(book.job_folder(job_id)))
    worker.stdin.close()  # what the kernel does when the service is killed
    assert worker.wait(30) == 0
    assert state(book, job_id) == "queued"


def test_cancel_timeout_and_the_stubborn(book, start):
    hanging, slow, stubborn = ask(book, "hang"), ask(book, "hang", timeout_seconds=1.0), ask(book, "stubborn")
    start(worker_concurrency=3)
    families = [until(lambda job_id=job_id: pids(book.job_folder(job_id))) for job_id in (hanging, slow, stubborn)]
    for job_id in (hanging, stubborn):
        assert book.cancel(job_id).stopping
    for job_id in (hanging, stubborn):
        job = ended(book, job_id)
        assert (job.state, job.resumable) == ("cancelled", True)
    assert "told to stop" in log_of(book, hanging)
    assert ended(book, slow).error == "stopped after 1 s, the time that it may take"
    until(lambda: not any(is_alive(pid) for family in families for pid in family))


def test_a_job_delivered_twice_runs_once(book, start):
    job_id = ask(book, "quick")
    queue = open_queue(book.folder, book.name, None)
    for _ in range(5):
        queue.put(job_id)
    queue.put("f" * 16)  # of a job that was forgotten
    for _ in range(2):
        start(worker_concurrency=2)
    assert ended(book, job_id).result == {"begun": 1}
    until(lambda: queue.take() is None)
    assert book.get(job_id).attempts == 1
    assert support.begun(book.job_folder(job_id)) == 1
    queue.close()


def test_progress_log_and_place_of_a_job(book, start):
    job_id = ask(book, "quick")
    start()
    job = ended(book, job_id)
    assert (job.progress.done, job.progress.total, job.progress.note) == (3, 3, "videos")
    lines = log_of(book, job_id).splitlines()
    assert lines[0].startswith("--- attempt 1, worker ")
    assert lines[-1] == "begun"


def test_memory_of_a_job_is_limited_and_it_gives_way(book, start):
    job_id = ask(book, "greedy")
    start(job_memory_bytes="1GiB", job_nice=7)
    assert ended(book, job_id).error == f"refused, nice {min(19, os.nice(0) + 7)} (exit code 1)"


@pytest.mark.parametrize(
    "asked",
    [
        IndexJob(kind="index", paths=["a", "--b"], captions="c.jsonl", prune=True, workers=2),
        IndexJob(kind="index", paths=["a"], store="new", model="demo", segment_seconds=5.0),
        IndexJob(kind="index", captions="c.jsonl"),
        TrainJob(kind="train", config=TINY),
        EvaluateJob(kind="evaluate", data="c.jsonl", model="demo", candidates=5, allow_missing=True),
        CalibrateJob(kind="calibrate", data="c.jsonl", model="demo", only_if_significant=True),
    ],
    ids=["index", "new-index", "captions", "train", "evaluate", "calibrate"],
)
def test_every_job_is_a_command_line_that_emcl_understands(book, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.jsonl").touch()
    files = {"config.json": json.dumps(TINY).encode()}
    job = book.create(asked.kind, asked.model_dump(exclude={"kind"}), files=files)
    words = command_of(job, book, load_settings({"jobs_folder": book.folder})).arguments
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    parameters = command.make_context(asked.kind, words).params
    assert parameters["device"] == "auto"
    assert list(parameters.get("paths") or []) == list(getattr(asked, "paths", []))


def test_an_index_run_writes_its_progress_as_lines(tmp_path):
    path = tmp_path / "progress.jsonl"
    progress, reader = FileProgress(path, Progress()), PhaseProgress(path)
    assert reader.latest() is None
    with progress.phase("videos", 3, "video") as bar:
        assert reader.latest() == JobProgress(done=0, total=3, note="videos")
        bar.advance(2)
        bar.note("1 failed")
    assert reader.latest() == JobProgress(done=2, total=3, note="videos · 1 failed")
    assert reader.latest() is None


def test_a_job_hears_sigint_although_its_worker_was_started_in_the_background(book, start, monkeypatch):
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `command &`
    try:
        start(job_grace_seconds=30)
    finally:
        signal.signal(signal.SIGINT, former)
    job_id = ask(book, "hang")
    until(lambda: pids(book.job_folder(job_id)))
    book.cancel(job_id)
    assert ended(book, job_id).state == "cancelled"
    assert "told to stop" in log_of(book, job_id)


def test_the_embedded_worker_is_started_when_needed_and_again_if_it_died(book):
    options = {"jobs_folder": book.folder}
    assert JobDesk(load_settings({**options, "redis_url": "redis://127.0.0.1:1"})).worker is None
    assert JobDesk(load_settings({**options, "embedded_worker": "off"})).worker is None
    desk = JobDesk(load_settings(options))
    desk.start()
    assert desk.worker.pid is None  # there is nothing to do
    job_id = ask(book, "held")
    book.start(job_id, pid=1, host="here")  # by another worker
    desk.start()
    first = desk.worker.pid
    assert is_alive(first)
    os.kill(first, signal.SIGKILL)
    until(lambda: desk.worker.pid is None)
    desk.worker.ensure()
    second = desk.worker.pid
    assert second not in (None, first)
    desk.close()
    assert not is_alive(second)
    assert state(book, job_id) == "running"
    desk.worker.ensure()
    assert desk.worker.pid is None  # closed is closed


def test_settings_of_the_service_do_not_reach_jobs(monkeypatch):
    from service.settings import environment_of, environment_of_jobs

    monkeypatch.setenv("EMCL_REDIS_URL", "redis://:secret@localhost")
    monkeypatch.setenv("EMCL_PORT", "1")
    assert not [name for name in environment_of_jobs() if name.startswith("EMCL_")]
    monkeypatch.delenv("EMCL_PORT")
    settings = load_settings({"jobs_inputs": "/a, /b", "job_nice": 3})
    handed_on = environment_of(settings)
    assert handed_on["EMCL_REDIS_URL"] == "redis://:secret@localhost"
    assert "EMCL_PORT" not in handed_on
    for name in [name for name in os.environ if name.startswith("EMCL_")]:
        monkeypatch.delenv(name)
    for name, value in handed_on.items():
        monkeypatch.setenv(name, value)
    assert load_settings({}) == settings


def test_nothing_unlike_an_id_leaves_the_queue(tmp_path):
    queue = open_queue(tmp_path, "book", None)
    for poison in (b"../../etc/passwd", b"\x80\x04K\x01.", b"", b"A" * 16):
        queue._storage.enqueue(poison)
        assert queue.take() is None
    queue.close()


@pytest.fixture
def redis_server(tmp_path):
    """Start and stop a Redis of our own on a socket in the test's folder."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed; `apt install redis-server`")
    socket, running = tmp_path / "redis.sock", []

    class Server:
        url = f"unix://{socket}"

        def start(self):
            options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
            running.append(subprocess.Popen([program, *options], stdout=subprocess.DEVNULL))
            until(lambda: self.command("PING").returncode == 0)

        def stop(self):
            running[-1].kill()
            running.pop().wait()
            socket.unlink(missing_ok=True)

        def command(self, *words):
            return subprocess.run(["redis-cli", "-s", str(socket), *words], capture_output=True, text=True)

    server = Server()
    server.start()
    yield server
    if running:
        server.stop()


def test_a_redis_that_is_flushed_and_restarted_loses_no_job(book, start, redis_server):
    queue = open_queue(book.folder, book.name, redis_server.url)
    hanging, *waiting = [ask(book, "hang")] + [ask(book, "quick") for _ in range(3)]
    for job_id in (hanging, *waiting):
        queue.put(job_id)
    start(redis_url=redis_server.url)
    until(lambda: pids(book.job_folder(hanging)))  # one at a time: the others wait in Redis
    assert redis_server.command("FLUSHALL").stdout.strip() == "OK"
    redis_server.stop()
    assert state(book, hanging) == "running"  # what runs does not need it
    book.cancel(hanging)
    ended(book, hanging)
    redis_server.start()
    for job_id in waiting:
        assert ended(book, job_id).result == {"begun": 1}
    queue.close()


def test_two_books_share_a_redis_without_mixing(book, start, redis_server, tmp_path):
    other = JobBook(tmp_path / "other")
    mine, theirs = ask(book, "quick"), ask(other, "quick")
    for owner, job_id in ((book, mine), (other, theirs)):
        queue = open_queue(owner.folder, owner.name, redis_server.url)
        queue.put(job_id)
        queue.close()
    start(redis_url=redis_server.url)
    assert ended(book, mine).state == "succeeded"
    assert state(other, theirs) == "queued"
    other.close()


def test_a_failing_job_does_not_end_the_worker(book, monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(runner, "command_of", fails)
    worker = Worker(load_settings({"jobs_folder": book.folder}))
    job_id = ask(book, "quick")
    worker._run_one(job_id)
    worker.reconcile()
    assert state(book, job_id) == "lost"
    worker.queue.close()
    worker.book.close()


@pytest.mark.slow
def test_a_training_whose_worker_was_killed_ends_in_the_same_weights(tmp_path):
    import torch

    from model.checkpoint import load_checkpoint

    desk = JobDesk(load_settings({"jobs_folder": tmp_path / "jobs", "embedded_worker": "off"}))
    book = desk.book
    whole, killed = (desk.submit(TrainJob(kind="train", config=TINY, device="cpu")).job_id for _ in range(2))
    options = ["--jobs-folder", str(book.folder), "--job-nice", "0"]
    command = [sys.executable, "-W", "error", "-m", "service.cli", "worker", *options]
    worker = subprocess.Popen(command)
    try:
        assert ended(book, whole, seconds=150).state == "succeeded", log_of(book, whole)
        until(lambda: book.get(killed).progress.done > 5)
        worker.kill()
        worker.wait()
        until(book.find_lost)
        desk.resume(killed)
        worker = subprocess.Popen(command)
        assert ended(book, killed, seconds=150).state == "succeeded", log_of(book, killed)
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
    assert "resuming" in log_of(book, killed)
    paths = [book.job_folder(job_id) / book.get(job_id).result["checkpoint"] for job_id in (whole, killed)]
    expected, found = (load_checkpoint(path).state_dict() for path in paths)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    desk.close()
