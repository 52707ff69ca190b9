"""How the workers of one service work together: changes go to the leader, and what it has committed is seen by all.

    change, at any worker ──► the leader's private socket ──► committed, counted ──► answered
    any other request ──► has the leader counted a change since? ──► then the newest state is opened first

So a request that begins after a change was acknowledged sees it, whichever worker answers. The private sockets are in a
folder that only this user can enter.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

import httpx
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.errors import Overloaded
from service.http.problems import from_error
from service.observe.request import RAW_REQUEST_ID_HEADER, current
from service.workers import ChangeCounter, WorkerPlace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from service.observe.metrics import Telemetry
    from service.search.live_index import LiveIndex

logger = logging.getLogger(__name__)

METRICS_PATH = "/metrics"
CHANGES = "changes"
"""The shared file of the leader's ``ChangeCounter``."""

_CLIENT_HEADER = b"x-emcl-client"  # believed on private sockets alone
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_CHANGING = re.compile(r"/v1/(videos|captions|jobs|index)(/.*)?")
_KNOWN_TO_THE_LEADER = re.compile(r"/v1/index|/v1/videos/[0-9a-f]{64}")  # what waits to be added, or published
_OF_ONE_CONNECTION = frozenset({b"connection", b"expect", b"keep-alive", b"transfer-encoding", b"upgrade"})
_MADE_HERE = frozenset({b"date", b"transfer-encoding", RAW_REQUEST_ID_HEADER})
_CONNECT_SECONDS, _METRICS_SECONDS = 5.0, 2.0
_RETRY_AFTER_SECONDS = 2
_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)


class Peers:
    """The other workers, each behind its private socket. Close it in the event loop that used it."""

    def __init__(self, place: WorkerPlace) -> None:
        self.place = place
        self._clients = {
            number: httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=str(place.socket_of(number)), limits=_NO_LIMITS),
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),  # the leader limits the time of what it does
            )
            for number in place.others
        }

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def metrics(self) -> dict[int, bytes | None]:
        """The page of each other worker, None of those that do not answer."""

        async def page(client: httpx.AsyncClient) -> bytes | None:
            try:
                answer = await client.get(f"http://worker{METRICS_PATH}", timeout=_METRICS_SECONDS)
            except httpx.TransportError:
                return None
            return answer.content if answer.status_code == 200 else None

        return dict(zip(self._clients, await asyncio.gather(*map(page, self._clients.values())), strict=True))

    async def to_leader(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the leader answer a request. Raises ``httpx.ConnectError`` where there is none, before anything is read.

        Raises ``Overloaded`` if the leader ended while it worked on it.
        """
        started = False
        try:
            answer = await self._clients[0].send(_request(scope, receive), stream=True)
            try:
                headers = [pair for pair in answer.headers.raw if pair[0].lower() not in _MADE_HERE]
                started = True
                await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
                async for piece in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            finally:
                await answer.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise
        except httpx.TransportError as error:
            if started:
                raise
            raise _leader_away("ended before it answered; the change may have been made") from error


class WorkTogether:
    """Sends what the leader has to answer to it; elsewhere, sees first that what it has committed is served."""

    def __init__(self, app: ASGIApp, place: WorkerPlace, telemetry: Telemetry) -> None:
        self.app = app
        self._place = place
        self._telemetry = telemetry
        self._private = (str(place.socket_of(place.number)), None)
        self._changes = ChangeCounter(place.shared(CHANGES))
        self._seen = -1
        self._looking = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, here or to the leader."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope.get("server") == self._private:
            if scope["path"] == METRICS_PATH:
                page = await asyncio.to_thread(self._telemetry.page)
                await Response(page)(scope, receive, send)
                return
            scope["client"] = _client_of(scope)
        elif not self._place.leads and await self._is_answered_by_leader(scope, receive, send):
            return
        if not self._place.leads and self._changes.value != self._seen:
            await self._catch_up(scope["app"].state.services.engine.live)
        await self.app(scope, receive, send)

    async def _is_answered_by_leader(self, scope: Scope, receive: Receive, send: Send) -> bool:
        reading = scope["method"] in _READING
        if not (_KNOWN_TO_THE_LEADER if reading else _CHANGING).fullmatch(scope["path"]):
            return False
        peers: Peers = scope["app"].state.peers
        try:
            await peers.to_leader(scope, receive, send)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            if reading:
                return False  # this worker knows nearly as much
            await from_error(_leader_away("is being started again; nothing was changed"))(scope, receive, send)
        except Overloaded as error:
            await from_error(error)(scope, receive, send)
        return True

    async def _catch_up(self, live: LiveIndex) -> None:
        """Serve what is committed by now; where that fails, the watcher of the index reports it and tries again."""
        async with self._looking:
            counted = self._changes.value
            if counted == self._seen:
                return
            try:
                await asyncio.to_thread(live.refresh)
            except Exception as error:
                logger.warning("the newest state of the index cannot be served: %s", error)
            self._seen = counted


def _request(scope: Scope, receive: Receive) -> httpx.Request:
    named = {name for name, _ in scope["headers"]}
    headers = [pair for pair in scope["headers"] if pair[0] not in _OF_ONE_CONNECTION | {_CLIENT_HEADER}]
    if scope.get("client"):
        headers.append((_CLIENT_HEADER, scope["client"][0].encode()))
    if observation := current():
        headers = [pair for pair in headers if pair[0] != RAW_REQUEST_ID_HEADER]
        headers.append((RAW_REQUEST_ID_HEADER, observation.request_id.encode()))
    query = scope["query_string"]
    url = httpx.URL("http://leader", raw_path=scope["raw_path"] + (b"?" + query if query else b""))
    has_body = b"content-length" in named or b"transfer-encoding" in named
    return httpx.Request(scope["method"], url, headers=headers, content=_body(receive) if has_body else None)


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _client_of(scope: Scope) -> tuple[str, int] | None:
    host = Headers(scope=scope).get(_CLIENT_HEADER.decode())
    return None if host is None else (host, 0)


def _leader_away(detail: str) -> Overloaded:
    return Overloaded(
        f"the process that takes changes {detail}",
        expected="a running one",
        next_step="look whether the change was made, and send it again after the seconds in Retry-After",
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )
