"""The web application around an engine. Factories build, this file only joins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from service.http import middleware, problems
from service.http.forwarding import Peers, WorkTogether
from service.index_swap import IndexSwap
from service.observe.collector import ServiceCollector
from service.observe.metrics import Observe, Telemetry
from service.routes import (
    answer,
    caption,
    captions,
    classify,
    clip_retrieval,
    index,
    jobs,
    pages,
    previews,
    search,
    session,
    transcripts,
    videos,
)
from service.routes.mcp import McpRoute
from service.schemas.search import Problem
from service.search.engine import Engine
from service.services import Services
from service.settings import Settings
from service.workers import ALONE, WorkerPlace

UPLOAD_ROUTES = frozenset(
    {
        ("POST", search.UPLOAD_PATH),
        ("POST", search.IMAGE_PATH),
        ("POST", classify.UPLOAD_PATH),
        ("POST", caption.UPLOAD_PATH),
        ("POST", answer.UPLOAD_PATH),
        ("POST", videos.UPLOAD_PATH),
    }
)

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


def create_app(settings: Settings, engine: Engine, place: WorkerPlace = ALONE) -> FastAPI:
    """An application that serves ``engine``, as the worker at ``place``, and closes it when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = Services(settings, engine, telemetry, place=place)
        services.start()
        app.state.services = services
        app.state.index_swap = index_swap = IndexSwap(app.state)
        app.state.peers = peers = Peers(place)
        telemetry.watch(ServiceCollector(services))
        try:
            async with mcp.running() if mcp is not None else nullcontext():
                yield
        finally:
            telemetry.forget()
            await index_swap.close()
            await peers.close()

    telemetry = Telemetry()
    app = Application(
        title="EMCL search",
        version=version("emcl-search"),
        summary="Find videos with words, and words with a video.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
        generate_unique_id_function=lambda route: route.name,  # generated clients call their methods so
    )
    for part in (
        search,
        classify,
        caption,
        answer,
        videos,
        previews,
        transcripts,
        captions,
        index,
        jobs,
        clip_retrieval,
        session,
        pages,
    ):
        app.include_router(part.router)
    mcp = McpRoute(app, max_body_bytes=settings.max_body_bytes) if settings.mcp else None
    if mcp is not None:
        app.router.routes.extend(mcp.routes)
    app.mount("/web", StaticFiles(directory=pages.WEB), name="web")
    problems.register(app)
    _add_middleware(app, settings, place, telemetry)
    app.add_middleware(Observe, telemetry=telemetry, upload_routes=UPLOAD_ROUTES)  # outermost: it sees every answer
    return app


def _add_middleware(app: FastAPI, settings: Settings, place: WorkerPlace, telemetry: Telemetry) -> None:
    # Added last runs first.
    app.add_middleware(
        middleware.LimitBodies,
        max_bytes=settings.max_body_bytes,
        timeout_seconds=settings.request_timeout_seconds,
        streamed=frozenset(path for _, path in UPLOAD_ROUTES),
    )
    app.add_middleware(middleware.CheckKeys, uploads=UPLOAD_ROUTES)
    app.add_middleware(middleware.LimitRequests)
    app.add_middleware(middleware.RefuseSearches, path=search.PATH)
    if settings.cors_origins:
        app.add_middleware(middleware.CrossOrigin, origins=settings.cors_origins)
    if settings.answered_hosts is not None:
        app.add_middleware(middleware.AnswerOnlyFor, hosts=settings.answered_hosts)
    if not place.is_alone:
        app.add_middleware(WorkTogether, place=place, telemetry=telemetry)
    app.add_middleware(middleware.FaultsBecomeProblems)
    app.add_middleware(middleware.AddSecurityHeaders)
