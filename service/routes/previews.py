"""Previews of videos that a browser does not play."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from starlette.responses import FileResponse, Response

from service.access.gate import require
from service.http.conditional import file_answer
from service.http.disconnect import unless_gone
from service.media.files import find_file
from service.media.previews import Wanted
from service.schemas.search import VIDEO_ID
from service.services import ServicesDep

_A_DAY = "private, max-age=86400"

router = APIRouter(prefix="/v1/videos", tags=["videos"], dependencies=[require("search")])


@router.get("/{video_id}/preview", summary="Play a video that browsers cannot", response_class=FileResponse)
@router.head("/{video_id}/preview", include_in_schema=False)
async def get_preview(
    video_id: Annotated[str, InPath(pattern=VIDEO_ID, description="SHA-256 of the video's bytes, in hexadecimal.")],
    request: Request,
    services: ServicesDep,
) -> Response:
    """The video's pictures as small H.264 in MP4, with the same times, without sound; whole or in ranges.

    It is made when it is first asked for, which takes a while. 413 if that would take too much.
    """

    def find() -> Wanted:
        with services.engine.live.lease() as generation:
            return Wanted(video_id=video_id, path=find_file(generation.video(video_id)))

    wanted = await asyncio.to_thread(find)
    path = await unless_gone(request, services.previews.file(wanted))
    etag = f'"{video_id}-preview"'
    return file_answer(
        request,
        path,
        kind="video/mp4",
        etag=etag,
        headers={"Cache-Control": _A_DAY},
        accel_redirect=services.settings.accel_redirect,
    )
