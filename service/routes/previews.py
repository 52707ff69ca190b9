"""Previews of videos that a browser does not play, and moments as files of their own."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from starlette.responses import FileResponse, Response

from service.access.gate import require
from service.errors import TooLarge, Unprocessable
from service.http.conditional import attachment, file_answer
from service.http.disconnect import unless_gone
from service.media.clips import Clip
from service.media.files import find_file
from service.media.previews import Wanted
from service.schemas.search import VIDEO_ID
from service.services import ServicesDep

_A_DAY = "private, max-age=86400"
VideoId = Annotated[str, InPath(pattern=VIDEO_ID, description="SHA-256 of the video's bytes, in hexadecimal.")]
Seconds = Annotated[float, Query(ge=0, le=1e7, allow_inf_nan=False, description="Seconds from the first frame.")]

router = APIRouter(prefix="/v1/videos", tags=["videos"], dependencies=[require("search")])


@router.get("/{video_id}/preview", summary="Preview of a video that browsers cannot play", response_class=FileResponse)
@router.head("/{video_id}/preview", include_in_schema=False)
async def get_preview(
    video_id: VideoId,
    request: Request,
    services: ServicesDep,
) -> Response:
    """The video's pictures as small H.264 in MP4, with the same times, without sound; whole or in ranges.

    It is made on the first request, which takes a while. 413 if that exceeds the limits.
    """

    def find() -> Wanted:
        with services.engine.live.lease() as generation:
            video = generation.video(video_id)
            return Wanted(video_id=video_id, path=find_file(video), check_clock=video.has_broken_clock)

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


@router.get("/{video_id}/clip", summary="Download a moment as a file", response_class=FileResponse)
@router.head("/{video_id}/clip", include_in_schema=False)
async def get_clip(
    video_id: VideoId,
    request: Request,
    services: ServicesDep,
    start: Annotated[Seconds, Query(alias="from")],
    end: Annotated[Seconds, Query(alias="to")],
    *,
    encode: Annotated[
        bool, Query(description="Encode again, for players that ignore where in a copied file the moment begins.")
    ] = False,
) -> Response:
    """Picture and sound from `from` to `to`, as MP4: copied without loss if possible, else encoded again. 413 if it is
    longer than the service allows or exceeds other limits.
    """

    def find() -> tuple[Wanted, str]:
        with services.engine.live.lease() as generation:
            video = generation.video(video_id)
        _check_span(start, end, video.duration_seconds, services.settings.clip_max_seconds)
        clip = Clip(start=start, end=end, encode=encode)
        path = find_file(video)
        return Wanted(video_id=video_id, path=path, clip=clip, check_clock=video.has_broken_clock), video.title

    wanted, title = await asyncio.to_thread(find)
    path = await unless_gone(request, services.previews.file(wanted))
    headers = {"Cache-Control": _A_DAY, "Content-Disposition": attachment(f"{title} {start:g}-{end:g}.mp4")}
    return file_answer(
        request,
        path,
        kind="video/mp4",
        etag=f'"{wanted.name}"',
        headers=headers,
        accel_redirect=services.settings.accel_redirect,
    )


def _check_span(start: float, end: float, duration_seconds: float | None, most_seconds: float) -> None:
    """Raise ``Unprocessable`` or ``TooLarge`` for a time of which no clip is made."""
    if end <= start or (duration_seconds is not None and start >= duration_seconds):
        lasts = "" if duration_seconds is None else f" and the video lasts {duration_seconds:g} s"
        raise Unprocessable(
            f"the clip would go from {start:g} to {end:g} s{lasts}",
            expected="`from` before `to`, and before the end of the video",
            next_step="ask for another part, such as `start` and `end` of a hit",
        )
    if end - start > most_seconds:
        raise TooLarge(
            f"the clip would last {end - start:g} s",
            expected=f"at most {most_seconds:g} s",
            next_step="ask for a shorter part, or raise --clip-max-seconds",
        )
