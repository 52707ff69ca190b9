"""Workers with real processes: killed, stopped, timed out, cancelled, claimed by one of many workers."""

import json
import os
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
from service.jobs.record import JobProgress
from service.jobs.store import JobStore
from service.jobs.submission import JobService
from service.jobs.worker import Worker
from service.settings import load_settings


@pytest.fixture
def job_store(tmp_path):
    made = JobStore(tmp_path / "jobs")
    yield made
    made.close()


@pytest.fixture
def start(job_store):
    """Start workers on the job store; those that still run at the end are killed."""
    started = []

    def start_one(**options):
        started.append(support.start_worker(job_store.folder, **options))
        return started[-1]

    yield start_one
    for process in started:
        process.stdin.close()
        process.kill()
        process.wait()


def state(job_store, job_id):
    return job_store.get(job_id).state


def ended(job_store, job_id, **patience):
    return until(lambda: (job := job_store.get(job_id)).finished and job, **patience)


def log_of(job_store, job_id):
    return job_store.log_path(job_id).read_text()


def test_a_worker_killed_mid_job_leaves_it_lost_and_it_can_be_resumed(job_store, start):
    job_id = ask(job_store, "once-then-quick")
    first = start()
    family = until(lambda: pids(job_store.job_folder(job_id)))
    assert state(job_store, job_id) == "running"
    assert job_store.find_lost() == []
    first.send_signal(signal.SIGKILL)
    first.wait()
    until(lambda: not any(map(is_alive, family)))  # the job and its helper die with the worker
    lost = until(job_store.find_lost)[0]
    assert (lost.job_id, lost.state, lost.resumable, lost.attempts) == (job_id, "lost", True, 1)
    start()
    time.sleep(0.5)
    assert state(job_store, job_id) == "lost"  # not by itself: --job-attempts is 1
    job_store.resume(job_id)
    assert ended(job_store, job_id).result == {"begun": 2}
    assert job_store.get(job_id).attempts == 2


def test_a_lost_job_is_tried_again_while_attempts_last(job_store, start):
    job_id = ask(job_store, "once-then-quick")
    first = start()
    until(lambda: pids(job_store.job_folder(job_id)))
    first.send_signal(signal.SIGKILL)
    start(job_attempts=2)
    assert until(lambda: state(job_store, job_id) == "succeeded")
    assert job_store.get(job_id).attempts == 2


def test_killed_by_the_system_is_tried_again_but_an_error_is_not(job_store, start):
    killed, dead, wrong = ask(job_store, "killed-once"), ask(job_store, "killed"), ask(job_store, "wrong")
    start(job_attempts=2)
    assert ended(job_store, killed).result == {"begun": 2}
    assert ended(job_store, dead).error == "killed by the system with SIGKILL (out of memory?)"
    assert job_store.get(dead).attempts == 2
    failed = ended(job_store, wrong)
    assert (failed.state, failed.error, failed.attempts) == ("failed", "there is no such thing (exit code 1)", 1)


def test_a_stopped_worker_puts_its_jobs_back(job_store, start):
    job_id = ask(job_store, "once-then-quick")
    first = start()
    until(lambda: pids(job_store.job_folder(job_id)))
    first.terminate()
    assert first.wait(30) == 0
    assert state(job_store, job_id) == "queued"
    assert "told to stop" in log_of(job_store, job_id)
    start()
    assert ended(job_store, job_id).result == {"begun": 2}


def test_a_worker_ends_with_the_service_that_started_it(job_store, start):
    job_id = ask(job_store, "hang")
    worker = start()
    until(lambda: pids(job_store.job_folder(job_id)))
    worker.stdin.close()  # what the kernel does when the service is killed
    assert worker.wait(30) == 0
    assert state(job_store, job_id) == "queued"


def test_cancel_timeout_and_the_stubborn(job_store, start):
    hanging, slow, stubborn = (
        ask(job_store, "hang"),
        ask(job_store, "hang", timeout_seconds=1.0),
        ask(job_store, "stubborn"),
    )
    start(worker_concurrency=3)
    families = [until(lambda job_id=job_id: pids(job_store.job_folder(job_id))) for job_id in (hanging, slow, stubborn)]
    for job_id in (hanging, stubborn):
        assert job_store.cancel(job_id).stopping
    for job_id in (hanging, stubborn):
        job = ended(job_store, job_id)
        assert (job.state, job.resumable) == ("cancelled", True)
    assert "told to stop" in log_of(job_store, hanging)
    assert ended(job_store, slow).error == "stopped after 1 s, the time that it may take"
    until(lambda: not any(is_alive(pid) for family in families for pid in family))


def test_of_many_workers_one_runs_a_job(job_store, start):
    jobs = [ask(job_store, "quick") for _ in range(3)]
    for _ in range(2):
        start(worker_concurrency=2)
    for job_id in jobs:
        assert ended(job_store, job_id).result == {"begun": 1}
        assert job_store.get(job_id).attempts == 1


def test_a_job_that_is_forgotten_while_it_waits_is_skipped(job_store, monkeypatch):
    worker = Worker(load_settings({"jobs_folder": job_store.folder}))
    gone = ask(job_store, "quick")
    waiting = job_store.queued(["evaluate"])
    job_store.cancel(gone)
    job_store.forget(gone)
    monkeypatch.setattr(worker.job_store, "queued", lambda kinds: waiting)
    assert not worker.run_next()
    worker.job_store.close()


def test_progress_log_and_place_of_a_job(job_store, start):
    job_id = ask(job_store, "quick")
    start()
    job = ended(job_store, job_id)
    assert (job.progress.done, job.progress.total, job.progress.note) == (3, 3, "videos")
    lines = log_of(job_store, job_id).splitlines()
    assert lines[0].startswith("--- attempt 1, worker ")
    assert lines[-1] == "begun"


def test_memory_of_a_job_is_limited_and_it_gives_way(job_store, start):
    job_id = ask(job_store, "greedy")
    start(job_memory_bytes="1GiB", job_nice=7)
    assert ended(job_store, job_id).error == f"refused, nice {min(19, os.nice(0) + 7)} (exit code 1)"


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
def test_every_job_is_a_command_line_that_emcl_understands(job_store, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.jsonl").touch()
    files = {"config.json": json.dumps(TINY).encode()}
    job = job_store.create(asked.kind, asked.model_dump(exclude={"kind"}), files=files)
    words = command_of(job, job_store, load_settings({"jobs_folder": job_store.folder})).arguments
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


def test_a_job_hears_sigint_although_its_worker_was_started_in_the_background(job_store, start, monkeypatch):
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `command &`
    try:
        start(job_grace_seconds=30)
    finally:
        signal.signal(signal.SIGINT, former)
    job_id = ask(job_store, "hang")
    until(lambda: pids(job_store.job_folder(job_id)))
    job_store.cancel(job_id)
    assert ended(job_store, job_id).state == "cancelled"
    assert "told to stop" in log_of(job_store, job_id)


def test_the_embedded_worker_is_started_when_needed_and_again_if_it_died(job_store):
    options = {"jobs_folder": job_store.folder}
    assert JobService(load_settings({**options, "redis_url": "redis://127.0.0.1:1"})).worker is None
    assert JobService(load_settings({**options, "embedded_worker": "off"})).worker is None
    jobs = JobService(load_settings(options))
    jobs.start()
    assert jobs.worker.pid is None  # there is nothing to do
    job_id = ask(job_store, "held")
    job_store.start(job_id, pid=1, host="here")  # by another worker
    jobs.start()
    first = jobs.worker.pid
    assert is_alive(first)
    os.kill(first, signal.SIGKILL)
    until(lambda: jobs.worker.pid is None)
    jobs.worker.ensure()
    second = jobs.worker.pid
    assert second not in (None, first)
    jobs.close()
    assert not is_alive(second)
    assert state(job_store, job_id) == "running"
    jobs.worker.ensure()
    assert jobs.worker.pid is None  # closed is closed


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


def test_a_failing_job_does_not_end_the_worker(job_store, monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(runner, "command_of", fails)
    worker = Worker(load_settings({"jobs_folder": job_store.folder}))
    job_id = ask(job_store, "quick")
    assert worker.run_next()
    worker.reconcile()
    assert state(job_store, job_id) == "lost"
    worker.job_store.close()


@pytest.mark.slow
def test_a_training_whose_worker_was_killed_ends_in_the_same_weights(tmp_path):
    import torch

    from model.checkpoint import load_checkpoint

    jobs = JobService(load_settings({"jobs_folder": tmp_path / "jobs", "embedded_worker": "off"}))
    job_store = jobs.job_store
    whole, killed = (jobs.submit(TrainJob(kind="train", config=TINY, device="cpu")).job_id for _ in range(2))
    options = ["--jobs-folder", str(job_store.folder), "--job-nice", "0"]
    command = [sys.executable, "-W", "error", "-m", "service.cli", "worker", *options]
    worker = subprocess.Popen(command)
    try:
        assert ended(job_store, whole, seconds=150).state == "succeeded", log_of(job_store, whole)
        until(lambda: job_store.get(killed).progress.done > 5)
        worker.kill()
        worker.wait()
        until(job_store.find_lost)
        jobs.resume(killed)
        worker = subprocess.Popen(command)
        assert ended(job_store, killed, seconds=150).state == "succeeded", log_of(job_store, killed)
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
    assert "resuming" in log_of(job_store, killed)
    paths = [job_store.job_folder(job_id) / job_store.get(job_id).result["checkpoint"] for job_id in (whole, killed)]
    expected, found = (load_checkpoint(path).state_dict() for path in paths)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    jobs.close()
