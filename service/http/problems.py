"""Every error answer of the service: RFC 9457 problem details. A browser gets a page instead.

A body of ``application/problem+json`` with ``type`` (a link into ``/docs``), ``title``, ``status``, ``detail`` (what
was wrong), ``expected`` and ``next_step``. Validation errors add ``errors``, one per wrong field. A bug is answered
with 500 and an ``incident`` that is in the log too, without internal details.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response
from starlette.routing import Match, Mount

from indexer.errors import EngineUnavailable
from service import errors as disk
from service.errors import Overloaded, ServiceError, UnsupportedMedia
from service.observe.request import CLIENT_LEFT, current

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_MISSING_PAGE = Path(__file__).parents[1] / "web" / "missing.html"
_JSON_TYPES = ("application/json", "+json")

# What routing itself refuses, and what the caller can do: (expected, next step).
_ROUTING_ADVICE = {
    404: ("one of the paths listed at /docs", "check the path and its identifiers; /docs lists every route"),
    405: ("one of the methods in the Allow header", "use a method that the path has; /docs lists them"),
}
_OTHER_ADVICE = ("a request as /docs describes it", "compare the request with its description at /docs")


class ProblemResponse(Response):
    """One problem as an HTTP answer."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        status: int,
        *,
        slug: str,
        title: str,
        detail: str,
        expected: str,
        next_step: str,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        body = {
            "type": f"/docs#problem-{slug}",
            "title": title,
            "status": status,
            "detail": detail,
            "expected": expected,
            "next_step": next_step,
            **extra,
        }
        if observation := current():
            observation.problem = slug
            body["request_id"] = observation.request_id
        super().__init__(json.dumps(body, ensure_ascii=False), status_code=status, headers=dict(headers or {}))


def from_error(error: ServiceError) -> ProblemResponse:
    """The answer to an error that the caller can do something about."""
    return ProblemResponse(
        error.status,
        slug=error.slug,
        title=error.title,
        detail=error.detail,
        expected=error.expected,
        next_step=error.next_step,
        headers=error.headers,
    )


def from_fault(incident: str) -> ProblemResponse:
    """The answer to a bug; ``incident`` finds it in the log."""
    return ProblemResponse(
        500,
        slug="internal",
        title="The service failed",
        detail="An unexpected error occurred; it is not the fault of the request.",
        expected="an answer",
        next_step=f"try again; if it happens again, report it with the log lines of incident {incident}",
        incident=incident,
    )


def kinds() -> list[dict[str, Any]]:
    """Every kind of problem with its slug, status and meaning, by status, as ``/docs`` lists them."""
    errors: list[dict[str, Any]] = [
        {"slug": kind.slug, "status": kind.status, "title": kind.title, "meaning": (kind.__doc__ or "").strip()}
        for kind in ServiceError.__subclasses__()
    ]
    errors.append(
        {
            "slug": "method-not-allowed",
            "status": 405,
            "title": "Method Not Allowed",
            "meaning": "The path has other methods, named in the Allow header.",
        }
    )
    errors.append(
        {"slug": "internal", "status": 500, "title": "The service failed", "meaning": "A fault of ours; see the log."}
    )
    return sorted(errors, key=lambda kind: int(kind["status"]))


def register(app: FastAPI) -> None:
    """Make every error of ``app`` a problem."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return from_error(error)

    @app.exception_handler(EngineUnavailable)
    async def engine_trouble(request: Request, error: EngineUnavailable) -> Response:
        logger.error("%s %s: %s", request.method, request.url.path, error)
        return from_error(
            Overloaded(
                "the engine that finds candidates cannot be reached or refuses",
                expected="an answer of the engine",
                next_step="try again later; the operator sees the reason in the log, and can serve without --engine",
                retry_after_seconds=disk.RETRY_SECONDS,
            )
        )

    @app.exception_handler(OSError)
    @app.exception_handler(sqlite3.Error)
    async def disk_trouble(request: Request, error: Exception) -> Response:
        if not disk.is_full(error):
            raise error
        logger.error("%s %s: %s", request.method, request.url.path, error)
        return from_error(disk.refusal())

    @app.exception_handler(ClientDisconnect)
    async def client_left(request: Request, error: ClientDisconnect) -> Response:
        logger.debug("%s %s: the client left", request.method, request.url.path)
        if observation := current():
            observation.problem = CLIENT_LEFT
        return Response(status_code=400)  # the client is gone

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return _from_validation(request, error)

    @app.exception_handler(HTTPException)
    async def routing_error(request: Request, error: HTTPException) -> Response:
        return _from_routing(request, error)


def _is_for_people(request: Request) -> bool:
    """Whether a browser navigated here: scripts accept JSON or anything, and below /v1 is the API."""
    wanted = request.headers.get("accept", "")
    return request.method == "GET" and "text/html" in wanted and not request.url.path.startswith("/v1/")


def _from_routing(request: Request, error: HTTPException) -> Response:
    if error.status_code == HTTPStatus.NOT_FOUND and _is_for_people(request):
        return FileResponse(_MISSING_PAGE, status_code=404, headers={"Cache-Control": "no-cache"})
    phrase = HTTPStatus(error.status_code).phrase
    expected, next_step = _ROUTING_ADVICE.get(error.status_code, _OTHER_ADVICE)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
    detail = f"{request.method} {request.url.path}: {phrase.lower()}"
    return ProblemResponse(
        error.status_code,
        slug=phrase.lower().replace(" ", "-"),
        title=phrase,
        detail=detail,
        expected=expected,
        next_step=next_step,
        headers=headers,
    )


def _methods(request: Request) -> list[str]:
    """The methods that any route takes for this path; routing itself names those of the first route alone."""
    found = set()
    for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"):
        scope = {**request.scope, "method": method}
        for route in request.app.routes:
            reads_only = isinstance(route, Mount)  # of static files: it says that it takes every method
            if route.matches(dict(scope))[0] == Match.FULL and (not reads_only or method in ("GET", "HEAD")):
                found.add(method)
    return sorted(found)


def _from_validation(request: Request, error: RequestValidationError) -> Response:
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    in_body = any(problem["loc"][:1] == ("body",) for problem in error.errors())
    if in_body and not content_type.endswith(_JSON_TYPES):
        return from_error(
            UnsupportedMedia(
                f"{request.url.path} takes JSON, got a body of type {content_type or 'none'}",
                expected="Content-Type: application/json",
                next_step="send the body as JSON and say so in the Content-Type header",
            )
        )
    problems = [{"where": _where(problem["loc"]), "message": _message(problem)} for problem in error.errors()]
    return ProblemResponse(
        422,
        slug="unprocessable",
        title="The request cannot be processed",
        detail="; ".join(f"{problem['where']}: {problem['message']}" for problem in problems),
        expected=f"the fields that /docs lists for {request.method} {_route_path(request)}",
        next_step="correct the fields named in `errors`",
        errors=problems,
    )


def _route_path(request: Request) -> str:
    route = request.scope.get("route")
    return str(getattr(route, "path", request.url.path))


def _where(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location)


def _message(problem: Mapping[str, Any]) -> str:
    """The message without the value: what was sent may be long, or not for a log."""
    return str(problem["msg"]).removeprefix("Value error, ")
