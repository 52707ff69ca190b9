"""The metrics, for Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.access.gate import require
from service.services import ServicesDep

router = APIRouter(tags=["health"], dependencies=[require("search")])


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def get_metrics(services: ServicesDep) -> Response:
    """All metrics in Prometheus' text format. The service runs as one process, so this is all of it."""
    page = await asyncio.to_thread(services.telemetry.page)
    return Response(page, media_type=CONTENT_TYPE_LATEST)
