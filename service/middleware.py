"""What every request passes, outermost first: security headers, faults become 500, the host check, the body limit.

Plain ASGI, so that streams stay streams and a client that goes away is noticed.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Misdirected, ServiceError, TooLarge
from service.problems import from_error, from_fault

logger = logging.getLogger(__name__)

SECURITY_HEADERS = {
    # Everything comes from this server; no inline script or style anywhere, /docs included.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class FaultsBecomeProblems:
    """Answers 500 when something unexpected is raised, logs it with its incident number, and keeps serving."""

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
                raise  # too late for another answer: the server cuts the connection
            await from_fault(incident)(scope, receive, send)


class AddSecurityHeaders:
    """Adds ``SECURITY_HEADERS`` to every answer that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
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
            name = host if host.endswith("]") else host.rsplit(":", 1)[0]
            if name not in self.hosts:
                await from_error(
                    Misdirected(
                        f"this server does not answer for the host {name[:200]!r}",
                        expected=f"one of {', '.join(self.hosts)}",
                        next_step="use one of these names, or start the server with --allowed-hosts NAME",
                    )
                )(scope, receive, send)
                return
        await self.app(scope, receive, send)


class LimitBodies:
    """Reads a body of at most ``max_bytes`` before it passes the request on; refuses larger ones with 413.

    ``streamed`` are the paths whose routes read, and limit, their body themselves.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, streamed: Collection[str]) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413."""
        if scope["type"] != "http" or scope["path"] in self.streamed:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ServiceError as error:
            await from_error(error)(scope, receive, send)
            return
        if body is None:
            return  # the client left before its request was complete
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            raise self._too_large(f"the body has {declared} bytes")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
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


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body once, then whatever the server says (that the client left)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
