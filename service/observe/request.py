"""The request that is being answered: its id, its stages, its problem. A leaf.

The outermost middleware (``service.observe.metrics.Observe``) makes one ``Observation`` for each request and holds it
in a context variable; code that works for the request may write into it, and reads it through ``current``.
"""

from __future__ import annotations

import re
import secrets
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST_ID_HEADER = "X-Request-ID"
RAW_REQUEST_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
CLIENT_LEFT = "client-left"  # the problem of a request whose client did not wait for the answer
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # no spaces, quotes or control characters: safe in headers and logs


@dataclass(kw_only=True)
class Observation:
    """One request. ``stages`` maps a stage to its seconds, in the order in which stages began."""

    request_id: str
    started: float = field(default_factory=perf_counter)
    stages: dict[str, float] = field(default_factory=dict)
    problem: str | None = None

    def add(self, stage: str, seconds: float) -> None:
        """Count ``seconds`` to a stage."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def seconds(self) -> float:
        """Since the request came in."""
        return perf_counter() - self.started

    @property
    def server_timing(self) -> str | None:
        """The value of a ``Server-Timing`` header, in milliseconds; ``None`` if no stage was noted."""
        if not self.stages:
            return None
        timed = {**self.stages, "total": self.seconds}
        return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in timed.items())


_current: ContextVar[Observation | None] = ContextVar("emcl_request", default=None)


def current() -> Observation | None:
    """The request that the calling task or thread works for, if it works for one."""
    return _current.get()


@contextmanager
def observing(observation: Observation) -> Iterator[Observation]:
    """Make ``observation`` the current one."""
    token = _current.set(observation)
    try:
        yield observation
    finally:
        _current.reset(token)


def request_id_of(offered: str | None) -> str:
    """The id that a client or proxy gave its request, if it is made of letters, digits and ``._:-``, else a new one."""
    if offered is not None and _SANE_ID.fullmatch(offered):
        return offered
    return secrets.token_hex(16)
