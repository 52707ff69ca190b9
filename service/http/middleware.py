"""Middleware of every request, outermost first: security headers, faults become 500, the host check, other origins,
the limits of searches and of requests, keys and rates, the limit of bodies.

Plain ASGI middleware, so that bodies stay streams and a disconnected client is noticed.

``Admission`` limits the requests under way and the bytes of bodies held for them. A request over the limit is refused
before it is read, so that ten thousand of them cost no more memory than the limit allows. Some places are reserved for
operators: probes, metrics, jobs and the index itself are answered while all others are taken.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.gate import Gate
from service.errors import BadRequest, Misdirected, Overloaded, RequestTimeout, ServiceError, TooLarge
from service.http.problems import from_error, from_fault

logger = logging.getLogger(__name__)

_RESERVED_PATHS = ("/health/", "/metrics", "/v1/index", "/v1/jobs", "/v1/session")

_RESERVED = 32

_BODIES_AT_ONCE = 64  # of the largest size; smaller ones, as they mostly are, may be many more


class Admission:
    """Counts ``active`` requests, ``held_bytes`` of their bodies, and ``rejected`` requests."""

    def __init__(self, *, max_requests: int, max_body_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_held_bytes = _BODIES_AT_ONCE * max_body_bytes
        self.active = 0
        self.held_bytes = 0
        self.rejected = 0

    def enter(self, path: str) -> None:
        """Admit one request, until ``leave``. Raises ``Overloaded``."""
        places = self.max_requests + (_RESERVED if path.startswith(_RESERVED_PATHS) else 0)
        if self.active >= places:
            raise self._full(f"{self.active} requests are in progress already", f"at most {self.max_requests} at once")
        self.active += 1

    def leave(self) -> None:
        """End one request."""
        self.active -= 1

    @contextmanager
    def body(self) -> Iterator[HeldBody]:
        """Room for one body, empty at first, released at the end."""
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


_HOST = re.compile(r"(\[[0-9a-f:.]*\]|[^\[\]:@/?#]*)(?::[0-9]{0,5})?")  # a name or an address, and a port

_DRAINED_BYTES = 64 * 1024  # the rest of a body that is read and dropped, so that its connection can be used again

SECURITY_HEADERS = {
    # Everything comes from this server; no inline script or style anywhere, /docs included.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

_RAW_SECURITY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]


class FaultsBecomeProblems:
    """Answers 500 to unexpected exceptions, logs them with an incident number, and keeps serving."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            incident = secrets.token_hex(6)
            logger.exception("incident %s: %s %s failed", incident, scope.get("method"), scope.get("path"))
            if scope["type"] != "http" or started:
                raise  # too late for another answer: the server closes the connection
            await from_fault(incident)(scope, receive, send)


class AddSecurityHeaders:
    """Adds ``SECURITY_HEADERS`` to every answer that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in _RAW_SECURITY_HEADERS if pair[0] not in own),
                ]
            await send(message)

        await self.app(scope, receive, with_headers)


class AnswerOnlyFor:
    """Refuses requests whose Host header names another host.

    Without keys this is what keeps a foreign web page from reading a server on loopback through a name that it
    points at 127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 421."""
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "").lower()
            match = _HOST.fullmatch(host)
            name = host if match is None else match[1]
            if match is None or name not in self.hosts:
                await from_error(
                    Misdirected(
                        f"this server does not answer for the host {name[:200]!r}",
                        expected=f"one of {', '.join(self.hosts)}",
                        next_step="use one of these names, or start the server with --allowed-hosts NAME",
                    )
                )(scope, receive, send)
                return
        await self.app(scope, receive, send)


class CrossOrigin(CORSMiddleware):
    """Lets pages of ``origins`` use the API with a key in a header; browsers send no session cookie with them."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=list(origins),
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Range", "X-API-Key"],
            expose_headers=["Content-Range", "Retry-After", "Server-Timing", "X-Request-ID"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to what a browser asks before it lets a page send."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        return from_error(
            BadRequest(
                "this page may not send this request to this server",
                expected="an origin that the server allows, and the methods and headers that the API has",
                next_step="start the server with --cors-origins and the origin of the page",
            )
        )


class RefuseSearches:
    """Refuses ``POST path``, a search, unread, while as many searches are accepted as may wait and be computed.

    That is ``max_queue`` and one batch. They count from the last byte of their request to their answer: counting the
    queue alone would accept a crowd that arrives together, and counting requests that are still arriving would let a
    few slow senders stop all searches.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self._path = path
        self._accepted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        queue = scope["app"].state.services.searches
        if self._accepted >= queue.max_queue + queue.max_batch or queue.is_full:
            queue.rejected += 1
            error = Overloaded(
                "the search queue is full",
                expected="fewer searches at once",
                next_step="try again after the seconds in Retry-After",
                retry_after_seconds=queue.retry_after_seconds,
            )
            await _refuse(error, scope, receive, send)
            return
        counted = 0

        async def counting() -> Message:
            nonlocal counted
            message = await receive()
            if not counted and message["type"] == "http.request" and not message.get("more_body", False):
                counted = 1
                self._accepted += 1
            return message

        try:
            await self.app(scope, counting, send)
        finally:
            self._accepted -= counted


class LimitRequests:
    """Refuses requests over the limit before they are read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        admission: Admission = scope["app"].state.services.admission
        try:
            admission.enter(scope["path"])
        except ServiceError as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            admission.leave()


class CheckKeys:
    """Checks the key and its rate before the body is read: ``request.state.key``, or 401 or 429.

    ``uploads`` are (method, path) of the routes whose requests count as uploads too.
    """

    def __init__(self, app: ASGIApp, uploads: Collection[tuple[str, str]]) -> None:
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            gate: Gate = scope["app"].state.services.gate
            method, path = scope["method"], scope["path"]
            client = scope["client"][0] if scope.get("client") else ""
            try:
                identity = gate.identify(method, path, Headers(scope=scope))
                await gate.limit(identity, path, client, upload=(method, path) in self.uploads)
            except ServiceError as error:
                await _refuse(error, scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = identity
        await self.app(scope, receive, send)


class LimitBodies:
    """Reads a body of at most ``max_bytes``, within ``timeout_seconds``, before it passes the request on.

    ``streamed`` are the paths whose routes read, and limit, their body themselves.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_seconds: float, streamed: Collection[str]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_seconds = timeout_seconds
        self.streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 408, 413, or 503 if too much is being held already."""
        if scope["type"] != "http" or scope["path"] in self.streamed:
            await self.app(scope, receive, send)
            return
        admission: Admission = scope["app"].state.services.admission
        with admission.body() as held:
            try:
                async with asyncio.timeout(self.timeout_seconds):
                    body = await self._read(scope, receive, held)
            except TimeoutError:
                await _refuse(self._too_slow(), scope, receive, send)
                return
            except ServiceError as error:
                await _refuse(error, scope, receive, send)
                return
            if body is not None:  # else the client left before its request was complete
                await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive, held: HeldBody) -> bytes | None:
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise self._too_large(f"the body has {declared} bytes")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            held.grow(len(piece))
            body += piece
            if len(body) > self.max_bytes:
                raise self._too_large(f"the body has more than {self.max_bytes} bytes")
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self, detail: str) -> TooLarge:
        return TooLarge(
            detail,
            expected=f"at most {self.max_bytes} bytes",
            next_step="send fewer or shorter texts in one request, or raise --max-body-bytes",
            headers={"Connection": "close"},
        )

    def _too_slow(self) -> RequestTimeout:
        return RequestTimeout(
            f"the body did not arrive within {self.timeout_seconds:g} seconds",
            expected="a steady stream of bytes",
            next_step="try again over a faster connection, or raise --request-timeout-seconds",
            headers={"Connection": "close"},
        )


async def _refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose body was not read; close the connection if the rest of the body is long."""
    headers = Headers(scope=scope)
    declared = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not declared.isdecimal() or int(declared) > _DRAINED_BYTES:
        error.headers["Connection"] = "close"
    await from_error(error)(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns a body that was read, once, then the messages of the server (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
