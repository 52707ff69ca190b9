"""The Model Context Protocol at ``/mcp``: the tools of ``service.client.mcp``, each call with its caller's key.

The tools call this application itself, without a socket, so that scopes, rates and limits hold for them as for
everyone. Mounted with ``--mcp``; needs the extra ``mcp``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI
from starlette.routing import BaseRoute

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from service.client import AsyncClient

PATH = "/mcp"
_BEARER = "bearer "


class MissingExtraError(ValueError):
    """A setting that needs a package which is not installed."""


class McpRoute:
    """What ``/mcp`` is made of: ``routes`` of the application, and ``running`` for the application's lifetime."""

    def __init__(self, service: FastAPI, *, max_body_bytes: int) -> None:
        try:
            from mcp.server.transport_security import TransportSecuritySettings

            from service.client.mcp import build_server
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"--mcp needs the package {error.name}, which is not installed; install the extra with "
                "`pip install 'emcl-search[mcp]'`, or leave --mcp out"
            ) from error
        self._service = service
        self._server = build_server(self._connect, local_files=False)
        self.routes: list[BaseRoute] = self._server.streamable_http_app(
            streamable_http_path=PATH,
            json_response=True,
            stateless_http=True,  # any process behind a balancer can answer any call
            max_request_body_size=max_body_bytes,
            # The service has checked Host and Origin before a request comes here.
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        ).routes

    def running(self) -> AbstractAsyncContextManager[None]:
        """Answers calls inside of this."""
        return self._server.session_manager.run()

    @asynccontextmanager
    async def _connect(self, context: Context[Any] | None) -> AsyncIterator[AsyncClient]:
        from service.client import AsyncClient

        headers = {} if context is None else {name.lower(): value for name, value in (context.headers or {}).items()}
        given = headers.get("authorization", "")
        key = given[len(_BEARER) :].strip() if given.lower().startswith(_BEARER) else None
        transport = httpx.ASGITransport(self._service)
        base_url = f"http://{headers.get('host', '127.0.0.1')}"
        async with AsyncClient(base_url, api_key=key, transport=transport) as client:
            yield client
