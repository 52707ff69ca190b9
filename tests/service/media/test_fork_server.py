"""Children of the fork server: nothing inherited, killed with their job, and served again after a crash."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from contextlib import contextmanager

import psutil
import pytest

from service.media import fork_server
from service.media.fork_server import Child, ForkServer, ForkServerLostError

WORKERS = """
import json, os, signal, sys, time
from service.media.fork_server import serve

def look(job):
    seen = {"descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),  # one is of the listing
            "environment": sorted(os.environ), "in": os.read(0, 100).decode(), "job": job, "pid": os.getpid(),
            "session": os.getsid(0), "modules": [name for name in sys.modules if "." not in name]}
    os.write(1, json.dumps(seen).encode())

def sleep(job): time.sleep(600)

serve({"look": look, "sleep": sleep, "leave": lambda job: job["code"], "fail": lambda job: 1 / 0,
       "die": lambda job: os.kill(os.getpid(), job["signal"])})
"""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fork_server, "SERVER", ("-c", WORKERS))
    made = ForkServer()
    yield made
    made.close()


@contextmanager
def started(server, worker, job=(), content=b""):
    """A child with ``content`` as standard input; yields it, and what reads its output and its complaints."""
    inputs, outputs, complaints = os.pipe(), os.pipe(), os.pipe()
    os.write(inputs[1], content)
    os.close(inputs[1])
    try:
        child = server.child(worker, dict(job), stdin=inputs[0], stdout=outputs[1], stderr=complaints[1])
    finally:
        for number in (inputs[0], outputs[1], complaints[1]):
            os.close(number)
    with child, os.fdopen(outputs[0], "rb") as output, os.fdopen(complaints[0], "rb") as complaint:
        yield child, output, complaint


def look(server, **job):
    with started(server, "look", job, b"hello") as (child, output, _):
        seen = json.loads(output.read())
        assert child.wait() == 0
    return seen


def children(server):
    return psutil.Process(server.pid).children()


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_has_its_streams_and_nothing_else(server, monkeypatch, tmp_path):
    monkeypatch.setenv("EMCL_SECRET", "value")
    with (tmp_path / "secret").open("wb") as secret, started(server, "sleep"):  # another job runs meanwhile
        os.set_inheritable(secret.fileno(), True)
        first, second = look(server, number=1), look(server, number=2)
    assert first["descriptors"] == second["descriptors"] == [0, 1, 2, 3]
    assert first["in"] == "hello"
    assert "EMCL_SECRET" not in first["environment"]
    assert (first["job"], second["job"]) == ({"number": 1}, {"number": 2})
    assert first["pid"] == first["session"] != second["pid"]


def test_the_server_that_decodes_imports_no_model_and_has_one_thread():
    server = ForkServer()
    server.start()
    try:
        process = psutil.Process(server.pid)
        wait_until(lambda: any("_av" in one.path or "/av/" in one.path for one in process.memory_maps()))
        mapped = [one.path for one in process.memory_maps()]
        assert not [path for path in mapped if "torch" in path or "faiss" in path]
        assert process.num_threads() == 1
    finally:
        server.close()


@pytest.mark.parametrize(("worker", "job", "code"), [
    ("leave", {"code": 0}, 0), ("leave", {"code": 7}, 7),
    ("die", {"signal": signal.SIGSEGV}, -signal.SIGSEGV), ("die", {"signal": signal.SIGXCPU}, -signal.SIGXCPU),
])  # fmt: skip
def test_the_exit_code_says_how_a_child_ended(server, worker, job, code):
    with started(server, worker, job) as (child, _, _):
        assert child.wait() == code


def test_what_a_worker_raises_is_its_complaint(server):
    with started(server, "fail") as (child, _, complaint):
        assert b"ZeroDivisionError" in complaint.read()
        assert child.wait() == 1


def test_a_killed_child_ends_and_the_others_go_on(server):
    with started(server, "sleep") as (first, _, _), started(server, "sleep"):
        threading.Timer(0.1, first.kill).start()
        assert first.wait() == -signal.SIGKILL
        first.kill()  # has ended
        assert len(children(server)) == 1
        assert look(server)["in"] == "hello"
    first.kill()  # is closed
    wait_until(lambda: not children(server))  # leaving kills what still runs


def test_many_threads_get_their_own_answers(server):
    answers = {}
    threads = [
        threading.Thread(target=lambda number=number: answers.update({number: look(server, number=number)["job"]}))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: {"number": number} for number in range(20)}
    assert not children(server)


def test_a_server_that_dies_takes_its_children_along_and_is_started_again(server):
    with started(server, "sleep") as (child, output, _):
        wait_until(lambda: children(server))
        first, orphan = server.pid, children(server)[0]
        os.kill(first, signal.SIGKILL)
        assert output.read() == b""  # the child has ended
        wait_until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(ForkServerLostError):
            child.wait()
    assert look(server)["in"] == "hello"
    assert server.pid != first


def test_a_server_that_cannot_start_is_reported(monkeypatch):
    monkeypatch.setattr(fork_server, "SERVER", ("-c", "raise SystemExit(3)"))
    server = ForkServer()
    with pytest.raises(ForkServerLostError), started(server, "look") as (child, _, _):
        child.wait()
    server.close()


def test_closing_ends_the_server_and_what_runs(server):
    with started(server, "sleep") as (child, _, _):
        wait_until(lambda: children(server))
        processes = [psutil.Process(server.pid), *children(server)]
        server.close()
        wait_until(lambda: not any(one.is_running() for one in processes))
        with pytest.raises(ForkServerLostError):
            child.wait()


def test_a_server_ends_with_its_owner(monkeypatch):
    monkeypatch.setattr(fork_server, "SERVER", ("-c", WORKERS))
    server = ForkServer()
    server.start()
    process = psutil.Process(server.pid)
    del server
    gc.collect()
    wait_until(lambda: not process.is_running())


def test_a_job_that_is_too_long_is_refused(server):
    with pytest.raises(ValueError, match="at most 65536 bytes"):
        server.child("look", {"text": "x" * 70_000}, stdin=0, stdout=1, stderr=2)


def test_an_answer_after_a_lost_server_is_an_error_not_a_hang():
    ours, theirs = fork_server.socket.socketpair()
    theirs.close()
    with Child(ours) as child, pytest.raises(ForkServerLostError):
        child.wait()
