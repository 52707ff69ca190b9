"""What is being served, and whether it works: health and metrics."""

from __future__ import annotations

import asyncio
import logging

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from indexer.store.confidence import LINE
from model.emcl.active import active_emcl
from service.access.gate import require
from service.http.disconnect import unless_gone
from service.observe.worker_metrics import merged
from service.schemas.index import EMCLOut, IndexAnswer, IndexOut, LiveAnswer, OverlayOut, ReadyAnswer, UploadLimitsOut
from service.schemas.jobs import ReloadRequest
from service.schemas.search import SourceOut
from service.services import Services, ServicesDep

logger = logging.getLogger(__name__)

router = APIRouter()


@router.get("/v1/index", tags=["index"], summary="Describe the index", dependencies=[require("search")])
async def describe_index(services: ServicesDep) -> IndexAnswer:
    """The generation that is served, the model, how much there is, and the limits of queries and uploads."""
    return _describe(services)


@router.post("/v1/index/reload", tags=["index"], summary="Serve the newest generation", dependencies=[require("admin")])
async def reload_index(request: Request, services: ServicesDep, asked: ReloadRequest | None = None) -> IndexAnswer:
    """Open the generation that was published last; queries in progress finish on the former one.

    With `index`, serve another index, with the model that it was built with, until the service ends: the one that an
    index job made, or the `configured` one. If it cannot be opened, the former index stays and the answer is 409.
    """
    before = _describe(services).generation
    if asked is not None and asked.index is not None:
        await request.app.state.index_swap.to(asked.index)
        services = request.app.state.services
    else:
        await asyncio.to_thread(services.engine.reload)
    after = _describe(services)
    logger.info("index reloaded: generation %s, before %s", after.generation, before)
    return after


@router.get("/health/live", tags=["health"], summary="Does the process answer?")
@router.head("/health/live", include_in_schema=False)
async def check_live() -> LiveAnswer:
    """Always true."""
    return LiveAnswer(live=True)


@router.get("/health/ready", tags=["health"], summary="Does search work?")
@router.head("/health/ready", include_in_schema=False)
async def check_ready(request: Request, services: ServicesDep) -> ReadyAnswer:
    """Runs one query through encoding, search and reranking without caches; 503 if the queue is too long."""
    result = await unless_gone(request, services.probe())
    return ReadyAnswer(
        ready=True,
        hits=len(result.hits),
        redis=services.redis.status,
        trouble=[work.name for work in services.background if work.trouble is not None],
        source=SourceOut.of(result.source),
    )


@router.get(
    "/metrics",
    tags=["health"],
    summary="Metrics for Prometheus",
    response_class=Response,
    dependencies=[require("search")],
)
async def get_metrics(request: Request, services: ServicesDep) -> Response:
    """All metrics in Prometheus' text format; of several workers, those of all, each with a label `worker`."""
    page = await asyncio.to_thread(services.telemetry.page)
    if not services.place.is_alone:
        pages = await request.app.state.peers.metrics()
        page = await asyncio.to_thread(merged, {**pages, services.place.number: page})
    return Response(page, media_type=CONTENT_TYPE_LATEST)


def _describe(services: Services) -> IndexAnswer:
    encoder, settings = services.engine.encoder, services.settings
    with services.engine.live.lease() as generation:
        manifest, version = generation.reader.manifest, generation.version
        correction = active_emcl(encoder.config.emcl, generation.reader.correction)
        notice = generation.demo_notice
        has_confidence = generation.reader.has_confidence
        revision, rows, counts = generation.reader.revision, generation.reader.overlay_rows, generation.reader.counts
    library = services.library
    return IndexAnswer(
        generation=manifest.generation,
        version=version,
        revision=revision,
        overlay=OverlayOut(rows=rows, publishing=library.writer.publishing, waiting=library.additions.waiting),
        created=manifest.created,
        fingerprint=encoder.fingerprint,
        model=encoder.config.name,
        runtime=encoder.runtime.label,
        runtime_reason=encoder.runtime.reason,
        dim=manifest.dim,
        factory=manifest.factory,
        indexes={side: IndexOut(**report.model_dump()) for side, report in manifest.indexes.items()},
        segment_seconds=manifest.segment_seconds,
        counts=counts.model_dump(),
        sampling=manifest.sampling.model_dump(),
        emcl=encoder.config.emcl.model_dump(),
        confidence_line=LINE if has_confidence else None,
        heads=[
            name
            for name, head in (("caption", encoder.net.captioner), ("answer", encoder.net.answerer))
            if head is not None
        ],
        demo_notice=notice,
        watched_folders=len(services.folder_watch.folders),
        correction=EMCLOut(**vars(correction)),
        upload_limits=UploadLimitsOut(
            max_bytes=settings.upload_max_bytes,
            max_seconds=settings.upload_max_seconds,
            max_pixels=settings.upload_max_pixels,
        ),
        query_limits={
            "max_texts": settings.max_texts,
            "max_text_chars": settings.max_text_chars,
            "max_candidates": settings.max_candidates,
            "default_candidates": services.engine.limits.default_candidates,
        },
    )
