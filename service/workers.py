"""Several processes that serve one store on one port: who is who, what they share, and the process that starts them.

    supervisor (loads the model) ─┬─ worker 0, the leader: takes all changes, jobs, folders, webhooks
                                  ├─ worker 1: searches; sends changes to the leader
                                  └─ worker 2 …

Workers are forked when the model is loaded, so that they share its memory. Each listens on a socket of its own for the
same port (``SO_REUSEPORT``; the supervisor keeps them open, so that a worker that is started again finds the
connections that waited), and on a private Unix socket that the others reach it by. A worker that ends is started again;
when the supervisor ends, however that happens, they end too.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_BYTES_OF_A_WORKER = 512 << 20
"""What ``auto`` allows each worker of the memory that is free: caches, batches, its own part of the index."""
_SOON_SECONDS = 5.0  # a worker that lived no longer is started again more and more slowly
_LONGEST_PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_WATCHED = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})
_COUNTER = struct.Struct("=Q")


@dataclass(frozen=True, kw_only=True)
class WorkerPlace:
    """Which of ``count`` workers a process is; ``folder`` is theirs alone, for what they share."""

    number: int = 0
    count: int = 1
    folder: Path | None = None

    @property
    def leads(self) -> bool:
        """Whether it takes changes, and does what only one process of a store may do."""
        return self.number == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    @property
    def others(self) -> list[int]:
        """The numbers of the other workers."""
        return [number for number in range(self.count) if number != self.number]

    def socket_of(self, number: int) -> Path:
        """Where a worker listens for the others."""
        return self.shared(f"{number}.sock")

    def shared(self, name: str) -> Path:
        """The path of something that workers share."""
        assert self.folder is not None, "several workers have a folder"
        return self.folder / name


ALONE = WorkerPlace()


class ChangeCounter:
    """How many changes the leader has committed, in memory that all workers map: others look before each request."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_COUNTER.size)
            self._memory = mmap.mmap(file.fileno(), _COUNTER.size)

    @property
    def value(self) -> int:
        """The present count."""
        return int(_COUNTER.unpack_from(self._memory)[0])

    def increase(self) -> None:
        """Count a change. By the leader alone, in one thread at a time."""
        _COUNTER.pack_into(self._memory, 0, self.value + 1)


def count_workers(wanted: str) -> int:
    """How many workers to start: a number, or ``auto``, as many as there are cores and the free memory bears."""
    if wanted != "auto":
        return int(wanted)
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return max(1, min(len(os.sched_getaffinity(0)), kibibytes * 1024 // _BYTES_OF_A_WORKER))


def check_forkable(what: str) -> None:
    """Raise ``ValueError`` if this process has several threads: a fork would have one of them, and their locks.

    NumPy's OpenBLAS ends its own before a fork, and starts them again when it needs them, so one is made first.
    """
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads > 1:
        raise ValueError(
            f"{what} started {threads - 1} threads, and workers are forked from a process with one; use --workers 1, "
            "or --runtime torch --device cpu"
        )


class WorkerFailedError(RuntimeError):
    """A worker ended before all were ready; its message is in the log."""


class Supervisor:
    """Starts ``count`` workers, which each call ``work(number, ready)``, and keeps them running.

    A worker calls ``ready`` when it serves; ``announce`` is called once all do, ``release`` when they are to end, so
    that no connection waits for a worker that will not come. The leader is stopped last: changes under way reach it.
    What has not ended after ``grace_seconds`` is killed.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int, Callable[[], None]], None],
        *,
        announce: Callable[[], None],
        release: Callable[[], None],
        grace_seconds: float,
    ) -> None:
        self._count = count
        self._work = work
        self._announce = announce
        self._release = release
        self._grace_seconds = grace_seconds
        self._pids: dict[int, int] = {}  # by worker
        self._started: dict[int, float] = {}
        self._due: dict[int, float] = {}  # when a worker that ended is started again
        self._failures = dict.fromkeys(range(count), 0)
        self._unready = set(range(count))
        self._announced = False

    def run(self) -> signal.Signals:
        """Serve until SIGTERM or SIGINT, which is returned. Raises ``WorkerFailedError`` if they do not start."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        self._ready, self._say_ready = os.pipe()
        os.set_blocking(self._ready, False)
        gc.collect()
        gc.freeze()  # pages that the collector does not touch stay shared
        try:
            for number in range(self._count):
                self._spawn(number)
            while True:
                info = signal.sigtimedwait(_WATCHED, _LOOK_SECONDS if self._due or not self._announced else 1.0)
                if info is not None and info.si_signo != signal.SIGCHLD:
                    return signal.Signals(info.si_signo)
                self._look()
        finally:
            self._end()
            gc.unfreeze()
            os.close(self._ready)
            os.close(self._say_ready)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _look(self) -> None:
        with suppress(BlockingIOError):
            self._unready -= set(os.read(self._ready, 4096))
        if not self._announced and not self._unready:
            self._announced = True
            self._announce()
        for number, code in self._reap().items():
            if not self._announced:
                raise WorkerFailedError(f"worker {number} ended with exit code {code} before it could serve")
            lived = time.monotonic() - self._started[number]
            self._failures[number] = self._failures[number] + 1 if lived < _SOON_SECONDS else 0
            pause = min(_LONGEST_PAUSE_SECONDS, self._failures[number] * 0.5 * 2 ** self._failures[number])
            logger.warning("worker %d ended with exit code %s; it is started again in %g s", number, code, pause)
            self._due[number] = time.monotonic() + pause
        for number in [number for number, due in self._due.items() if due <= time.monotonic()]:
            del self._due[number]
            self._spawn(number)

    def _reap(self) -> dict[int, int]:
        """Exit codes of the workers that have ended, negative for the signal that ended them."""
        ended = {}
        for number, pid in list(self._pids.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found == pid:
                del self._pids[number]
                ended[number] = os.waitstatus_to_exitcode(status)
        return ended

    def _spawn(self, number: int) -> None:
        self._started[number] = time.monotonic()
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(number, supervisor)
        self._pids[number] = pid

    def _become_worker(self, number: int, supervisor: int) -> None:
        """Work and exit; never returns."""
        code = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:
                os._exit(1)  # it died before that could be said
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            os.close(self._ready)
            self._work(number, lambda: self._say(number))
            code = 0
        except KeyboardInterrupt:
            code = 0  # Ctrl-C reaches all processes of a terminal
        except BaseException:
            logger.exception("worker %d failed", number)
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _say(self, number: int) -> None:
        os.write(self._say_ready, bytes([number]))

    def _end(self) -> None:
        """Stop the followers, then the leader; SIGTERM or SIGINT again, or the end of the grace, kills what is left."""
        self._release()
        deadline = time.monotonic() + self._grace_seconds
        for group in ([number for number in self._pids if number != 0], [0]):
            for number in group:
                if number in self._pids:
                    os.kill(self._pids[number], signal.SIGTERM)
            while any(number in self._pids for number in group):
                info = signal.sigtimedwait(_WATCHED, _LOOK_SECONDS)
                self._reap()
                again = info is not None and info.si_signo != signal.SIGCHLD
                if again or time.monotonic() > deadline:
                    for number in self._pids:
                        logger.warning("worker %d did not end in time and is killed", number)
                        os.kill(self._pids[number], signal.SIGKILL)
                    deadline = float("inf")
