"""The service's own measurements: Prometheus metrics of one application, and the middleware that observes requests.

Two kinds of numbers. What happens is counted here (requests, stages, batches, problems, uploads);
what *is* (queues, caches, the index, jobs, memory) is read from the parts of the service when Prometheus asks
(``service.observe.collector``). Every label has a bounded set of values: routes by their template, problems by their
slug; nothing that a client sends becomes a label. The registry belongs to one application in one process: there is no
global state. Each worker has its own; the page of any of them shows all (``service.observe.worker_metrics``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.datastructures import Headers

from service.observe.logs import access_logger
from service.observe.request import (
    CLIENT_LEFT,
    RAW_REQUEST_ID_HEADER,
    REQUEST_ID_HEADER,
    Observation,
    current,
    observing,
    request_id_of,
)
from service.search.values import SearchQuery, SearchResult, Source

if TYPE_CHECKING:
    from prometheus_client.registry import Collector
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")

NO_ANSWER = "499"  # what proxies write for a request whose client did not wait for the answer
UNROUTED = "unrouted"  # refused before a route was chosen, or no route has the path
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ACCESS_LINE = "%(method)s %(path)s %(status)s %(duration_ms).1f ms %(bytes)d bytes key=%(key)s"
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Telemetry:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._watched: Collector | None = None
        ProcessCollector(registry=self.registry)
        self.requests = Histogram(
            "emcl_http_request_seconds",
            "Time from a request's first byte to the last of its answer.",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = 0
        Gauge("emcl_http_requests_in_flight", "Requests being answered.", registry=self.registry).set_function(
            lambda: self.in_flight
        )
        self.stages = Histogram(
            "emcl_stage_seconds",
            "Time of a stage: encode, candidates, captions, rerank and answer of a batch; queue, cache, receive and "
            "decode of a request.",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "emcl_batch_size", "Queries computed together.", buckets=_SIZES, registry=self.registry
        )
        self.problems = Counter("emcl_problems", "Error answers, by kind.", ("problem",), registry=self.registry)
        self.uploads = Counter("emcl_uploads", "Uploads, by what became of them.", ("outcome",), registry=self.registry)

    def watch(self, collector: Collector) -> None:
        """Also read ``collector`` on each scrape, instead of any former one."""
        self.forget()
        self.registry.register(collector)
        self._watched = collector

    def forget(self) -> None:
        """Read no collector any more."""
        if self._watched is not None:
            self.registry.unregister(self._watched)
            self._watched = None

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def batched(
        self, search: Callable[[Sequence[SearchQuery]], list[SearchResult]]
    ) -> Callable[[Sequence[SearchQuery]], list[SearchResult]]:
        """``search``, with the size of each batch counted, and its stages once, however many queries shared them."""

        def counted(queries: Sequence[SearchQuery]) -> list[SearchResult]:
            results = search(queries)
            self.batches.observe(len(queries))
            # Queries that were computed together report the same times.
            for laps in {tuple(result.source.stage_seconds.items()) for result in results}:
                self._count(dict(laps))
            return results

        return counted

    async def timed(self, work: Awaitable[T], *, batched: bool = False) -> T:
        """Wait for ``work`` of the engine and note its stages, and the wait before them, for the present request.

        ``batched`` work has its stages counted by ``batched`` already, but for ``cache``: that one saved the others.
        """
        started = perf_counter()
        result = await work
        elapsed = perf_counter() - started
        stage_seconds = _stages_of(result)
        self.note("queue", max(0.0, elapsed - sum(stage_seconds.values())))
        self._count({stage: t for stage, t in stage_seconds.items() if not batched or stage == "cache"})
        if observation := current():
            for stage, seconds in stage_seconds.items():
                observation.add(stage, seconds)
        return result

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the present request; one that fails is not counted."""
        started = perf_counter()
        yield
        self.note(name, perf_counter() - started)

    def note(self, stage: str, seconds: float) -> None:
        """Count a stage that belongs to the present request alone."""
        self.stages.labels(stage).observe(seconds)
        if observation := current():
            observation.add(stage, seconds)

    def answered(self, scope: Scope, status: int | None, observation: Observation, *, upload: bool) -> str:
        """Count a request that is over; returns the status that it is counted under."""
        left = status is None or observation.problem == CLIENT_LEFT
        counted = NO_ANSWER if left else str(status)
        problem = CLIENT_LEFT if left else observation.problem
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.requests.labels(method, route_of(scope), counted).observe(observation.seconds)
        if problem is not None:
            self.problems.labels(problem).inc()
        if upload:
            self.uploads.labels(problem or "accepted").inc()
        return counted

    def _count(self, stage_seconds: dict[str, float]) -> None:
        for stage, seconds in stage_seconds.items():
            self.stages.labels(stage).observe(seconds)


class Observe:
    """The outermost middleware: request ids, ``Server-Timing``, metrics and the access line.

    ``upload_routes`` are (method, route template) of routes that receive videos.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, upload_routes: frozenset[tuple[str, str]]) -> None:
        self.app = app
        self.telemetry = telemetry
        self.upload_routes = upload_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and observe its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None
        sent_bytes = 0
        observation = Observation(request_id=request_id_of(Headers(scope=scope).get(REQUEST_ID_HEADER)))

        async def observed(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_headers(observation)]
            sent_bytes += len(message.get("body", b""))
            await send(message)

        self.telemetry.in_flight += 1
        with observing(observation):
            try:
                await self.app(scope, receive, observed)
            finally:
                self.telemetry.in_flight -= 1
                self._end(scope, status, sent_bytes, observation)

    def _end(self, scope: Scope, status: int | None, sent_bytes: int, observation: Observation) -> None:
        route = route_of(scope)
        upload = (scope["method"], route) in self.upload_routes
        counted = self.telemetry.answered(scope, status, observation, upload=upload)
        key = scope.get("state", {}).get("key")
        client = scope.get("client")
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "route": route,
            "status": int(counted),
            "duration_ms": round(observation.seconds * 1000, 3),
            "bytes": sent_bytes,
            "key": getattr(key, "name", "-"),
            "client": client[0] if client else None,
            "problem": observation.problem,
            "stage_ms": {stage: round(seconds * 1000, 3) for stage, seconds in observation.stages.items()},
        }
        access_logger.info(_ACCESS_LINE, fields, extra={"fields": fields})


def route_of(scope: Scope) -> str:
    """The template of the route that answers, ``/web/*`` for a mounted folder, or ``unrouted``."""
    path = getattr(scope.get("route"), "path", None)
    if path is not None:
        return str(path)
    return f"{scope.get('root_path', '')}/*" if scope.get("endpoint") is not None else UNROUTED


def _headers(observation: Observation) -> Iterator[tuple[bytes, bytes]]:
    yield RAW_REQUEST_ID_HEADER, observation.request_id.encode()
    if (timing := observation.server_timing) is not None:
        yield b"server-timing", timing.encode()


def _stages_of(result: Any) -> dict[str, float]:
    """The seconds by stage of what the engine returned: one result, several of one batch, or rows with their source."""
    if isinstance(result, Source):
        return result.stage_seconds
    if isinstance(result, list | tuple):
        # The slowest of them: results of one request that waited in different batches did so at the same time.
        found = [_stages_of(part) for part in result]
        return max(found, key=lambda stages: sum(stages.values()), default={})
    source = getattr(result, "source", None)
    return source.stage_seconds if isinstance(source, Source) else {}
