"""Child processes of benchmarks: whatever ends one, nothing that it started lives on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import ChildFailedError, run_child

ROOT = Path(harness.__file__).parents[1]
CHILD = """
import os, signal, subprocess, sys, time
how = sys.argv[1]
if how == "nested":
    from benchmarks.harness import run_child
    run_child("some_child", ["deaf"], on_line=lambda line: print(line, flush=True))
code = "import time; print('up', flush=True); time.sleep(600)"
if how == "deaf":
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + code
sleeper = subprocess.Popen(
    [sys.executable, "-c", f"import os; print(os.getpid(), flush=True); {code}"],
    start_new_session=how == "own session",
)
time.sleep(1 if how in ("dies", "ends") else 600)
if how == "dies":
    os._exit(7)
print('"answer"')
"""
CALLER = """
import signal, sys
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from benchmarks.harness import run_child
run_child("some_child", [sys.argv[1]], on_line=lambda line: print(line, flush=True))
"""


@pytest.fixture(autouse=True)
def child(tmp_path, monkeypatch):
    """A child that starts a sleeper, which holds its output and prints its number; a short grace."""
    (tmp_path / "some_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(harness, "GRACE_SECONDS", 1.0)


def gone(pid):
    """Has the process ended? Nobody may be there to reap it. Waits a moment: a signal takes one."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("how", "limit"), [("plain", 4), ("deaf", 4), ("own session", 4), ("nested", 8)])
def test_a_child_that_is_stopped_takes_its_sleeper_along_and_in_time(how, limit):
    lines: list[str] = []
    begun = time.perf_counter()
    with pytest.raises(ChildFailedError, match=f"stopped after {limit} s"):
        run_child("some_child", [how], timeout_seconds=limit, on_line=lines.append)
    assert time.perf_counter() - begun < limit + 11
    assert lines[-1] == "up"
    assert gone(lines[0])


@pytest.mark.parametrize("how", ["dies", "ends"])
def test_a_sleeper_that_outlives_its_parent_does_not_outlive_the_limit(how):
    lines: list[str] = []
    with pytest.raises(ChildFailedError, match="stopped after 4 s"):
        run_child("some_child", [how], timeout_seconds=4, on_line=lines.append)
    assert gone(lines[0])


def test_what_a_child_leaves_behind_is_ended(tmp_path):
    code = "import subprocess\nprint(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid)"
    (tmp_path / "leaves.py").write_text(code)
    assert gone(run_child("leaves", timeout_seconds=60).answer)


def test_a_listener_that_fails_ends_everything():
    lines: list[str] = []

    def listen(line):
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child("some_child", ["plain"], timeout_seconds=60, on_line=listen)
    assert gone(lines[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("how", ["plain", "nested"])
def test_a_signal_ends_everything(number, how):
    """Ctrl-C reaches the caller alone: its child has a session of its own."""
    command = [sys.executable, "-c", CALLER, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as caller:
        sleeper, up = caller.stdout.readline().strip(), caller.stdout.readline().strip()
        caller.send_signal(number)
        _, said = caller.communicate(timeout=60)
    assert up == "up", said
    assert caller.returncode not in (0, None)
    assert gone(sleeper)


def test_signals_are_as_they_were_afterwards(tmp_path):
    (tmp_path / "answers.py").write_text("print(1)")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert run_child("answers").answer == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
