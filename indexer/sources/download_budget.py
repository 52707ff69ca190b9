"""How far the threads that stage videos may run ahead, and how they end."""

from __future__ import annotations

import threading
from collections.abc import Callable

STAGED_FILES = 256
"""Most copies at a time: far more than are decoded, few enough to be read again after a kill."""


class RunEnded(Exception):  # noqa: N818 - what it is
    """The run has ended."""


class Budget:
    """Bytes that may lie on the disk; who wants more waits. One copy may always lie there, whatever its size."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._reserved: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def check_open(self) -> None:
        """Raise ``RunEnded`` if it has."""
        if self._closed:
            raise RunEnded

    def reserve(self, name: str, size_bytes: int) -> None:
        """Wait until a copy may be made. Raises ``RunEnded``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(size_bytes))
            if self._closed:
                raise RunEnded
            self._reserved[name] = size_bytes

    def release(self, name: str) -> None:
        """Say that a copy is gone."""
        with self._changed:
            self._reserved.pop(name, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Say that the run has ended, to whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        if len(self._reserved) >= STAGED_FILES:
            return False
        return not self._reserved or sum(self._reserved.values()) + size_bytes <= self._limit_bytes


class Countdown:
    """Calls ``at_zero`` when all have said that they are done."""

    def __init__(self, count: int, at_zero: Callable[[], None]) -> None:
        self._count = count
        self._at_zero = at_zero
        self._lock = threading.Lock()

    def one_less(self) -> None:
        """Say that one is done."""
        with self._lock:
            self._count -= 1
            zero = self._count == 0
        if zero:
            self._at_zero()
