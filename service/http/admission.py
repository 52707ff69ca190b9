"""How much the service takes on at once: requests, and the bytes of bodies that are held for them.

A request over the limit is refused before anything of it is read, so that ten thousand of them cost no more memory than
the limit allows. Some places are kept for those who look after the service: probes, metrics, jobs and the index itself
are answered while everything else is full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Overloaded

_RESERVED_PATHS = ("/health/", "/metrics", "/v1/index", "/v1/jobs", "/v1/session")
_RESERVED = 32
_BODIES_AT_ONCE = 64  # of the largest size; smaller ones, as they mostly are, may be many more


class Admission:
    """Counts what is under way. ``active`` requests, ``held_bytes`` of bodies; ``rejected`` counts refusals."""

    def __init__(self, *, max_requests: int, max_body_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_held_bytes = _BODIES_AT_ONCE * max_body_bytes
        self.active = 0
        self.held_bytes = 0
        self.rejected = 0

    def enter(self, path: str) -> None:
        """One request more is under way, until ``leave``. Raises ``Overloaded``."""
        places = self.max_requests + (_RESERVED if path.startswith(_RESERVED_PATHS) else 0)
        if self.active >= places:
            raise self._full(f"{self.active} requests are under way already", f"at most {self.max_requests} at once")
        self.active += 1

    def leave(self) -> None:
        """One request less."""
        self.active -= 1

    @contextmanager
    def body(self) -> Iterator[HeldBody]:
        """The room for one body, empty at first, and given back in the end."""
        held = HeldBody(self)
        try:
            yield held
        finally:
            self.held_bytes -= held.size_bytes

    def _full(self, detail: str, expected: str) -> Overloaded:
        self.rejected += 1
        return Overloaded(detail, expected=expected, next_step="try again after the seconds in Retry-After")


class HeldBody:
    """A body that is being read."""

    def __init__(self, admission: Admission) -> None:
        self.size_bytes = 0
        self._admission = admission

    def grow(self, size_bytes: int) -> None:
        """Make room for more of it. Raises ``Overloaded`` if there is none."""
        admission = self._admission
        if admission.held_bytes + size_bytes > admission.max_held_bytes:
            raise admission._full(
                f"bodies of {admission.held_bytes} bytes are held already", f"at most {admission.max_held_bytes} bytes"
            )
        admission.held_bytes += size_bytes
        self.size_bytes += size_bytes
