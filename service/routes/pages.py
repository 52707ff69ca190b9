"""The page at ``/`` and the description of the API at ``/docs``. No build step, nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

WEB = Path(__file__).parents[1] / "web"
_FRESH = {"Cache-Control": "no-cache"}  # kept by the browser, but asked for again by its ETag

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """The search page."""
    return FileResponse(WEB / "index.html", headers=_FRESH)


@router.get("/docs")
async def docs() -> FileResponse:
    """The description of the API, from ``/openapi.json``."""
    return FileResponse(WEB / "docs.html", headers=_FRESH)
