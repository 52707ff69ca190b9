"""Limits on connections before they are requests: their number, and the time for a request's head.

uvicorn's own protocol, with two bounds that it lacks. A connection over the limit gets 503 with Retry-After and is
closed; one that does not send the head of a request in time, the first or a later one, is closed without an answer.
Input that is not HTTP gets a problem document like every other error.

Requests are parsed by h11, not by the faster httptools: h11 reads one request after the other, keeps trailers and
upgrades apart, and bounds the size of heads; uvicorn's protocol on httptools does none of these.
"""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import BadRequest, Overloaded, ServiceError
from service.http.problems import from_error

_RETRY_AFTER_SECONDS = 2
_SPARE_FILES = 256  # of the store, of clients' uploads, of Redis


@dataclass(kw_only=True)
class Connections:
    """The bounds, and how often each was met: ``rejected`` over the limit, ``too_slow`` with the head of a request."""

    max_connections: int
    head_seconds: float
    rejected: int = 0
    too_slow: int = 0

    @property
    def protocol(self) -> Any:
        """What uvicorn takes as ``http``."""
        return partial(BoundedProtocol, bounds=self)


class BoundedProtocol(H11Protocol):
    """One connection within ``bounds``."""

    def __init__(self, *arguments: Any, bounds: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds = bounds
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        if len(self.connections) > self._bounds.max_connections:
            self._bounds.rejected += 1
            self._end_with(
                Overloaded(
                    "too many connections are open",
                    expected=f"at most {self._bounds.max_connections}",
                    next_step="try again after the seconds in Retry-After",
                    retry_after_seconds=_RETRY_AFTER_SECONDS,
                )
            )
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline with the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Watch the time from the first byte of a head to its last."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._deadline is None:
            self._wait_for_head()

    def send_400_response(self, msg: str) -> None:
        """Answer input that is not HTTP."""
        self._end_with(
            BadRequest(
                "this is not an HTTP request", expected="HTTP/1.1", next_step="send a request as /docs describes it"
            )
        )

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(self._bounds.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._bounds.too_slow += 1
            self.transport.close()

    def _end_with(self, error: ServiceError) -> None:
        """Write an answer without a request, and close."""
        problem = from_error(error)
        headers = [*problem.raw_headers, (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (error.status, head, problem.body))
        self.transport.close()


def allow_open_files(max_connections: int) -> None:
    """Raise the limit of open files, as far as the system lets us, to what so many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
