"""Measuring on a machine that is shared: turn about, medians, processor time; child processes; memory.

What is compared is run in turns in one process (A B, B A, A B …), so that other work on the machine slows both alike,
and what counts is the median and the ratio of medians. Work of one thread is measured in that thread's processor time,
which does not run while the thread waits for a core; work of several threads or processes only in wall time.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

T = TypeVar("T")
Clock = Literal["thread", "wall"]
Task = Callable[[], object]

CLOCKS: dict[Clock, Callable[[], float]] = {"thread": time.thread_time, "wall": time.perf_counter}
LEAST_ROUNDS = 5
"""A median of fewer says nothing about its spread; a time budget stops a measurement only after so many."""

PRODUCT_SIDE, PRODUCT_SIDE_QUICK = 1536, 256
READ_BYTES, READ_BYTES_QUICK = 256 << 20, 4 << 20
GRACE_SECONDS = 5.0
"""Time that a child's processes have to end after SIGTERM."""


class NotHereError(RuntimeError):
    """What a section measures is not on this machine; the message says what is missing. No failure."""


class ChildFailedError(RuntimeError):
    """A child process ended badly; the message holds the end of what it printed."""


def interleave(
    tasks: Mapping[str, Task],
    *,
    rounds: int,
    clock: Clock = "thread",
    warm_up: int = 3,
    budget_seconds: float | None = None,
) -> dict[str, tuple[float, ...]]:
    """Seconds of each task, ``rounds`` times each, in turns whose order is reversed every round.

    The first ``warm_up`` rounds do not count. Once ``budget_seconds`` of wall time have passed no further round
    begins, but never before ``LEAST_ROUNDS`` (or ``rounds``, if fewer) were measured.
    """
    read = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in tasks}
    forth, back = list(tasks), list(tasks)[::-1]
    begun = time.perf_counter()
    for number in range(rounds + warm_up):
        measured = number - warm_up
        late = budget_seconds is not None and time.perf_counter() - begun > budget_seconds
        if late and measured >= min(LEAST_ROUNDS, rounds):
            break
        for name in forth if number % 2 else back:
            started = read()
            tasks[name]()
            taken = read() - started
            if measured >= 0:
                times[name].append(taken)
    return {name: tuple(values) for name, values in times.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch and FAISS with ``count`` threads; before that, what they had.

    NumPy's matrix products take their number of threads from the environment that the process was started with.
    """
    import faiss
    import torch

    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def matrix_product(side: int, dtype: str = "float32") -> Task:
    """A product of two square matrices: ``2 * side ** 3`` operations."""
    import torch

    left, right = (torch.randn(side, side).to(getattr(torch, dtype)) for _ in range(2))
    return lambda: left @ right


def reading(array: np.ndarray[Any, Any]) -> Task:
    """Read an array once, as fast as this machine's memory allows: a vectorised sum over all its bytes."""
    import torch

    flat = torch.from_numpy(array.reshape(-1).view(np.float32))
    return flat.sum


@dataclass(frozen=True, kw_only=True)
class Child:
    """What a child process printed as its last line (JSON), and how long it took."""

    answer: Any
    seconds: float


def run_child(
    module: str,
    arguments: Sequence[str] = (),
    *,
    thread_count: int = 1,
    timeout_seconds: float = 600.0,
    on_line: Callable[[str], None] | None = None,
) -> Child:
    """Run ``python -m module`` with so many threads to every library; its last line of output is its answer, as JSON.

    ``on_line`` is called with every line as it arrives. Raises ``ChildFailedError`` if it does not succeed in time
    with an answer. Whatever it started ends with it.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors, _signals_raise():
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(thread_count),
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
        )
        last, late = _watch(process, timeout_seconds, on_line)
        errors.seek(0)
        said = errors.read()[-2000:]
    if late:
        raise ChildFailedError(f"python -m {module} was stopped after {timeout_seconds:.0f} s\n{said}")
    if process.returncode != 0:
        raise ChildFailedError(f"python -m {module} {' '.join(arguments)} ended with {process.returncode}\n{said}")
    try:
        answer = json.loads(last)
    except ValueError as error:
        raise ChildFailedError(
            f"python -m {module} gave no answer as its last line, but {last[:200]!r}\n{said}"
        ) from error
    return Child(answer=answer, seconds=time.perf_counter() - begun)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``SystemExit``, as Ctrl-C raises: a child in its own session hears of none of them."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    ours = threading.current_thread() is threading.main_thread()
    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if ours and signal.getsignal(one) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _watch(
    process: subprocess.Popen[str], timeout_seconds: float, on_line: Callable[[str], None] | None
) -> tuple[str, bool]:
    """The last line that a child prints, and whether it was stopped. Nothing that it started is left, however it ends.

    The child leads a session of its own.
    """
    late = threading.Event()
    timer = threading.Timer(timeout_seconds, _stop, (process.pid, late))
    try:
        with process:
            try:
                timer.start()
                last = _follow(process, on_line)
                # Ended, but not reaped: nobody else can have its number while its group is looked for.
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            finally:
                _end(process.pid)
    finally:
        timer.cancel()
    return last, late.is_set()


def _stop(leader: int, late: threading.Event) -> None:
    late.set()
    _end(leader)


def _end(leader: int) -> None:
    """SIGTERM to a child's process group and to those that its descendants lead; SIGKILL to what then stays."""
    known = _groups({leader})
    until = time.monotonic() + GRACE_SECONDS
    try:
        _signal(known, signal.SIGTERM)
        while time.monotonic() < until and _groups(known):
            time.sleep(0.05)
    finally:  # also if a second Ctrl-C comes meanwhile
        _signal(_groups(known), signal.SIGKILL)


def _signal(groups: set[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


def _groups(known: set[int]) -> set[int]:
    """Process groups of all living processes that are in one of ``known`` or descend from one that is.

    A child that calls ``run_child`` itself, or a server with workers, has descendants in groups of their own.
    """
    living: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended just now
            state, parent, group = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:3]
            if state not in "ZX":
                living[int(path.parent.name)] = int(parent), int(group)
    found = {number for number, (_, group) in living.items() if group in known}
    while more := {number for number, (parent, _) in living.items() if parent in found} - found:
        found |= more
    return {living[number][1] for number in found}


def environment(thread_count: int) -> dict[str, str]:
    """This process's environment with so many threads for OpenMP and BLAS.

    FAISS and PyTorch bring a pool of threads each. Where they take turns, threads of one that wait busily for work
    would keep the cores from the other, so waiting is passive, for what is measured and for its floor.
    """
    return {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(thread_count)),
    }


def _follow(process: subprocess.Popen[str], on_line: Callable[[str], None] | None) -> str:
    """The last line that a process prints; all go to ``on_line``."""
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        last = line.strip() or last
        if on_line is not None:
            on_line(last)
    return last


@dataclass(frozen=True, kw_only=True)
class Resident:
    """MiB of a process in memory: ``own`` pages, and those of ``files`` that it maps and that the kernel may drop.

    ``peak`` is the most that it ever held of both.
    """

    own: float
    files: float
    peak: float

    @property
    def all(self) -> float:
        """What `ps` calls RSS."""
        return self.own + self.files


def resident() -> Resident:
    """What this process holds in memory now. (Of ended children the kernel counts their parent's pages in.)"""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    mib = {name: int(number) / 1024 for name, number in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return Resident(own=mib["RssAnon"] + mib["RssShmem"], files=mib["RssFile"], peak=mib["VmHWM"])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a section measures: the whole sizes, or tiny ones that only show that it works."""

    quick: bool = False

    def pick(self, full: T, quick: T) -> T:
        """``full`` or ``quick``."""
        return quick if self.quick else full
