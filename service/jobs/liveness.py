"""Evidence that a process still works on a job: a lock on a file, which the kernel releases when its holders end.

No clock, no process number and no boot can deceive it: a lock that can be taken means that every process which held
it has ended, be it in another container on the same volume. The runner's child processes inherit the lock, so that a
job counts as alive until the last of them is gone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

_ATTEMPTS = 200
_PAUSE_SECONDS = 0.025  # a process that only looks holds the lock for microseconds; together 5 s


class AliveLock:
    """The lock of one job, held until ``release`` or the end of all processes that have it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, path: Path, *, while_: Callable[[], bool]) -> AliveLock | None:
        """Take the lock, as long as ``while_`` is true; ``None`` if a process works on the job."""
        for _ in range(_ATTEMPTS):
            if not while_():
                return None
            lock = cls.look(path)
            if lock is not None:
                return lock
            time.sleep(_PAUSE_SECONDS)
        return None

    @classmethod
    def look(cls, path: Path) -> AliveLock | None:
        """Take the lock without waiting; ``None`` if it is held."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def release(self) -> None:
        """Let go of it, also for the processes that inherited it."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)
