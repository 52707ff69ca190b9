"""What a connection may cost before it is a request: how many there are, how long a head may be and how long it takes.

uvicorn's own protocol, with the bounds that it lacks. A connection over the limit gets 503 with Retry-After and is
closed; one that does not send the head of a request in time, the first or a later one, is closed without a word; a head
that is too long, too many requests at once, and what is no HTTP at all, are told so as every other error is. And an
answer's head leaves together with its body.
"""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import BadRequest, Overloaded, ServiceError
from service.problems import from_error

MAX_HEAD_BYTES = 64 * 1024
MAX_PIPELINED = 32  # requests of one connection that wait for the answers before theirs
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


class BoundedProtocol(HttpToolsProtocol):
    """One connection within ``bounds``."""

    def __init__(self, *arguments: Any, bounds: Connections, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bounds = bounds
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = False  # between the first byte of a head and its last
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it."""
        super().connection_made(transport)
        self.transport = HeadWithBody(self, transport)  # type: ignore[assignment]
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
        """Watch how long a head becomes, and how long it takes."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("")
        if self._deadline is None and (self._in_head or self._is_idle):
            self._wait_for_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._in_head = False
        self._stop_waiting()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too much")  # the parser gives up, and uvicorn calls `send_400_response`
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or over a bound."""
        self._end_with(
            BadRequest(
                "this is no HTTP request, its head is too long, or too many were sent before it was answered",
                expected=f"HTTP/1.1, a head of at most {MAX_HEAD_BYTES} bytes, at most {MAX_PIPELINED} requests ahead",
                next_step="send a request as /docs describes it",
            )
        )

    @property
    def _is_idle(self) -> bool:
        """Whether no request waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._deadline = self.loop.call_later(self._bounds.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._is_idle:
            self._bounds.too_slow += 1
            self.transport.close()
        else:
            self._wait_for_head()  # the request before it is answered first

    def _end_with(self, error: ServiceError) -> None:
        """Answer by hand, for there is no request, and close."""
        problem = from_error(error)
        headers = [*problem.raw_headers, (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (error.status, head, problem.body))
        self.transport.close()


class HeadWithBody:
    """A transport that keeps the head of an answer until its body is written, but never past what the loop does next.

    uvicorn writes them one after the other: two system calls and two packets, for the first of which the client wakes
    up for nothing. All else is the transport's own.
    """

    def __init__(self, protocol: BoundedProtocol, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport
        self._answered: object = None  # the request whose head was written last
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, or keep."""
        cycle = self._protocol.cycle
        if cycle is not None and cycle.response_started and cycle is not self._answered:
            self._flush()
            self._answered, self._head = cycle, data
            self._protocol.loop.call_soon(self._flush)
        elif data:
            self._transport.write(self._head + data)
            self._head = b""

    def close(self) -> None:
        """Write what was kept, and close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""


def allow_open_files(max_connections: int) -> None:
    """Raise the limit of open files, as far as the system lets us, to what so many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
