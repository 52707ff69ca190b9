"""Refusing searches while the queue is full, before anything is spent on them.

Clients that are refused and ask again at once may come by the thousand a second. Each of them passes here before keys,
limits, the body, JSON, the access log: the answer lies ready as bytes, and one log line a second tells of all of them.
Refusing before the key is checked tells a stranger only that the service is busy. What is in a cache is refused too:
finding out would take what is to be saved.
"""

from __future__ import annotations

import json
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from service.errors import Overloaded
from service.http.middleware import DRAINED_BYTES, RAW_SECURITY_HEADERS
from service.http.problems import MEDIA_TYPE, from_error
from service.observe.request import RAW_REQUEST_ID_HEADER, REQUEST_ID_HEADER, request_id_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.observe.metrics import Telemetry
    from service.search.batching import Batcher
    from service.services import Services

logger = logging.getLogger(__name__)

_TOLD_EVERY_SECONDS = 1.0


class RefuseEarly:
    """The outermost middleware of all: answers 503 to ``POST path``, a search, while no more searches are taken on.

    Taken on are as many as may wait and be computed: ``max_queue`` and one batch. Counting them from their last byte to
    their answer, not by the length of the queue, refuses at the door also those that arrive together. Who has not sent
    everything yet does not count, or a few slow senders could stop all searches.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, *, path: str, other_origins: bool) -> None:
        """With ``other_origins`` what pages of other origins send goes on, for only CORS lets them read an answer."""
        self.app = app
        self._path = path
        self._other_origins = other_origins
        self._taken_on = 0
        self._telemetry = telemetry
        self._refusal = _Refusal()
        self._untold = 0
        self._told = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        services: Services = scope["app"].state.services
        queue = services.searches
        if self._taken_on >= queue.max_queue + queue.max_batch or queue.is_full:
            headers = Headers(scope=scope)
            if not (self._other_origins and "origin" in headers):
                await self._refuse(queue, headers, send)
                return
        counted = 0

        async def counting() -> Message:
            nonlocal counted
            message = await receive()
            if not counted and message["type"] == "http.request" and not message.get("more_body", False):
                counted = 1
                self._taken_on += 1
            return message

        try:
            await self.app(scope, counting, send)
        finally:
            self._taken_on -= counted

    async def _refuse(self, queue: Batcher[Any, Any], headers: Headers, send: Send) -> None:
        queue.rejected += 1
        self._telemetry.requests.labels("POST", self._path, str(Overloaded.status)).observe(0)
        self._telemetry.problems.labels(Overloaded.slug).inc()
        self._tell()
        for message in self._refusal.messages(queue.retry_after_seconds, headers):
            await send(message)

    def _tell(self) -> None:
        self._untold += 1
        if (now := monotonic()) - self._told >= _TOLD_EVERY_SECONDS:
            logger.info("the queue is full: %d searches refused since this was told last", self._untold)
            self._told, self._untold = now, 0


class _Refusal:
    """The answer, ready but for the id of its request and the time to wait."""

    def __init__(self) -> None:
        error = Overloaded(
            "as many searches wait as may",
            expected="fewer searches at once",
            next_step="try again after the seconds in Retry-After",
        )
        problem = {**json.loads(bytes(from_error(error).body)), "request_id": ""}
        self._head, _, self._tail = json.dumps(problem).encode().rpartition(b'""')
        self._headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            *RAW_SECURITY_HEADERS,
        ]

    def messages(self, retry_after_seconds: int, asked: Headers) -> tuple[Message, Message]:
        """What ASGI sends in answer to a request with the headers ``asked``."""
        request_id = request_id_of(asked.get(REQUEST_ID_HEADER)).encode()
        body = b'%s"%s"%s' % (self._head, request_id, self._tail)
        headers = [
            *self._headers,
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % retry_after_seconds),
            (RAW_REQUEST_ID_HEADER, request_id),
        ]
        if _sends_much(asked):
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": Overloaded.status, "headers": headers}
        return start, {"type": "http.response.body", "body": body}


def _sends_much(headers: Headers) -> bool:
    """Whether the rest of the body is not worth waiting for: the connection ends then."""
    declared = headers.get("content-length", "0")
    return "transfer-encoding" in headers or not declared.isdecimal() or int(declared) > DRAINED_BYTES
