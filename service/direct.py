"""A route without the framework's general machinery on its way: for the one that must be fast.

FastAPI solves dependencies and validates bodies for any signature, and that took half a millisecond of a search. A
``DirectRoute`` is declared like any other, with a body, the request and the services, so that it is described and
checked like any other; but a plain JSON request of it is read here. Whatever is not plain (another content type, JSON
that is not valid, a value that is not allowed) goes the usual way, which says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from service.auth import Require
from service.deps import Services
from service.keys import Scope

Body = TypeVar("Body", bound=BaseModel)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def direct_route(body: type[Body], scope: Scope) -> type[APIRoute]:
    """A route class for endpoints ``(asked: body, request, services) -> Response`` that need a key of ``scope``."""
    required = Require(scope)

    class DirectRoute(APIRoute):
        """See the module."""

        def get_route_handler(self) -> Handler:
            """What answers a request of this route."""
            usual = super().get_route_handler()
            endpoint: Callable[[Body, Request, Services], Awaitable[Response]] = self.endpoint

            async def handle(request: Request) -> Response:
                asked = await _read(request, body)
                if asked is None:
                    return await usual(request)
                await required(request)
                services: Services = request.app.state.services
                services.requests += 1
                try:
                    return await endpoint(asked, request, services)
                finally:
                    services.requests -= 1

            return handle

    return DirectRoute


async def _read(request: Request, body: type[Body]) -> Body | None:
    """The body, if the request is plain and the body valid. It is kept in the request for the usual way."""
    if request.headers.get("content-type") != "application/json":
        return None
    try:
        return body.model_validate(json.loads(await request.body()))
    except (ValidationError, ValueError, RecursionError):
        return None
