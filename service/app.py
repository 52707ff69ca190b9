"""The web application around an engine. Factories build, this file only joins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from service import middleware, problems
from service.deps import Services
from service.engine import Engine
from service.routes import index, pages, search, videos
from service.schemas import Problem
from service.settings import Settings

_PROBLEM = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be answered; `next_step` says what to do.", "content": _PROBLEM},
    "5XX": {"description": "The service is busy (503, with Retry-After) or failed.", "content": _PROBLEM},
}


class Application(FastAPI):
    """FastAPI whose description of itself knows our problems."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the body of errors and, as ``x-problems``, every kind of them."""
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
            document["x-problems"] = problems.kinds()
        assert self.openapi_schema is not None
        return self.openapi_schema


def create_app(settings: Settings, engine: Engine) -> FastAPI:
    """An application that serves ``engine`` and closes it when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = Services(settings, engine)
        services.start()
        app.state.services = services
        try:
            yield
        finally:
            await services.close()

    app = Application(
        title="EMCL search",
        version=version("emcl-search"),
        summary="Find videos with words, and words with a video.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    for router in (search.router, videos.router, index.router, pages.router):
        app.include_router(router)
    app.mount("/web", StaticFiles(directory=pages.WEB), name="web")
    problems.register(app)
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    # Added last runs first.
    app.add_middleware(
        middleware.LimitBodies, max_bytes=settings.max_body_bytes, streamed=frozenset({search.UPLOAD_PATH})
    )
    if settings.answered_hosts is not None:
        app.add_middleware(middleware.AnswerOnlyFor, hosts=settings.answered_hosts)
    app.add_middleware(middleware.FaultsBecomeProblems)
    app.add_middleware(middleware.AddSecurityHeaders)
