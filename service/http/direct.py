"""A way past the framework's general machinery, for the one route that must be fast.

FastAPI looks through routers, opens stacks for dependencies and validates bodies of any signature, which took more than
half a millisecond of a search. A ``DirectRoute`` stands before the routers and answers plain JSON requests for one of
their routes by calling the same endpoint. Whatever is not plain (another content type, JSON that is not valid, a value
that is not allowed) goes on to the route itself, which says what is wrong with it, and which describes them both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from service.access.gate import Require
from service.http.middleware import replay
from service.services import Services

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from service.access import keys

Body = TypeVar("Body", bound=BaseModel)

_PLAIN = (b"content-type", b"application/json")
_PASSED_ON = "emcl.passed_on"  # in the scope of a request that was not plain


class DirectRoute(BaseRoute, Generic[Body]):
    """Answers ``POST path`` with ``endpoint``, which needs a key of ``scope`` and takes a ``body``."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[[Body, Request, Services], Awaitable[Response]],
        *,
        body: type[Body],
        scope: keys.Scope,
    ) -> None:
        self.path = path
        self._endpoint = endpoint
        self._body = body
        self._required = Require(scope)

    def stand_before(self, app: FastAPI) -> None:
        """Look at every request before the routes of ``app`` do."""
        app.router.routes.insert(0, self)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request may be plain."""
        if scope["type"] != "http" or scope["path"] != self.path or scope["method"] != "POST":
            return Match.NONE, {}
        if _PASSED_ON in scope or _PLAIN not in scope["headers"]:
            return Match.NONE, {}
        return Match.FULL, {"route": self, "endpoint": self._endpoint}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on if it is not plain after all."""
        content = await _content(receive)
        asked = self._read(content)
        if asked is None:
            await scope["app"].router({**scope, _PASSED_ON: True}, replay(content, receive), send)
            return
        request = Request(scope, receive, send)
        await self._required(request)
        services: Services = scope["app"].state.services
        services.requests += 1
        try:
            response = await self._endpoint(asked, request, services)
        finally:
            services.requests -= 1
        await response(scope, receive, send)

    def _read(self, content: bytes) -> Body | None:
        try:
            return self._body.model_validate_json(content)
        except ValidationError:
            return None


async def _content(receive: Receive) -> bytes:
    """The body of a request. Raises ``ClientDisconnect``."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
