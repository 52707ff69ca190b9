"""Indexed videos: listed, described, streamed, pictured. What is listed is what is searchable."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from starlette.responses import FileResponse, Response

from service.deps import Services, ServicesDep, unless_gone
from service.media import Moment, check_range, find_file, media_type
from service.schemas import VIDEO_ID, SegmentOut, VideoOut, VideosPage, stream_url, thumbnail_url

if TYPE_CHECKING:
    from indexer.records import Video

# A video is named by its bytes, so what is served under its name never changes; private, for it may need a key.
_FOREVER = "private, max-age=31536000, immutable"
_A_DAY = "private, max-age=86400"
_MAX_PAGE = 1000

router = APIRouter(prefix="/v1/videos", tags=["videos"])

VideoId = Annotated[str, InPath(pattern=VIDEO_ID, description="SHA-256 of the video's bytes, in hexadecimal.")]


@router.get("", summary="List videos")
async def list_videos(
    services: ServicesDep,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Videos to leave out before the first.")] = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE, description="Most videos.")] = 100,
) -> VideosPage:
    """A page of the indexed videos, in the order of their ids."""

    def read() -> VideosPage:
        with services.engine.live.lease() as generation:
            videos = generation.reader.list_videos(offset, limit)
            total = generation.reader.manifest.counts.videos
        return VideosPage(videos=[_shape(video) for video in videos], total=total, offset=offset, limit=limit)

    return await asyncio.to_thread(read)


@router.get("/{video_id}", summary="Describe a video")
async def get_video(video_id: VideoId, services: ServicesDep) -> VideoOut:
    """One video with its segments and captions."""
    return _shape(await asyncio.to_thread(_find, services, video_id))


@router.get("/{video_id}/stream", summary="Play a video", response_class=FileResponse)
@router.head("/{video_id}/stream", include_in_schema=False)
async def stream(video_id: VideoId, request: Request, services: ServicesDep) -> Response:
    """The bytes of the file that was indexed, whole or in ranges."""

    def prepare() -> tuple[Path, str]:
        path = find_file(_find(services, video_id))
        if "if-range" not in request.headers:
            check_range(request.headers.get("range"), path.stat().st_size)
        return path, media_type(path)

    path, kind = await asyncio.to_thread(prepare)
    headers = {"ETag": f'"{video_id}"', "Cache-Control": _FOREVER}
    return FileResponse(path, media_type=kind, headers=headers)


@router.get("/{video_id}/thumbnail", summary="A picture of a moment", response_class=Response)
async def thumbnail(
    video_id: VideoId,
    request: Request,
    services: ServicesDep,
    t: Annotated[
        float | None,
        Query(ge=0, le=1e7, allow_inf_nan=False, description="Seconds from the first frame; default: the middle."),
    ] = None,
) -> Response:
    """A JPEG of the frame that is on screen at a time; behind the end, of the last frame."""
    video = await asyncio.to_thread(_find, services, video_id)
    path = await asyncio.to_thread(find_file, video)
    seconds = (video.duration_seconds or 0.0) / 2 if t is None else t
    moment = Moment(video_id=video_id, path=path, milliseconds=round(seconds * 1000))
    picture = await unless_gone(request, services.thumbnails.picture(moment))
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": _A_DAY})


def _find(services: Services, video_id: str) -> Video:
    with services.engine.live.lease() as generation:
        return generation.video(video_id)


def _shape(video: Video) -> VideoOut:
    return VideoOut(
        video_id=video.video_id,
        title=Path(video.path).stem if video.path else video.video_id[:12],
        duration_seconds=video.duration_seconds,
        width=video.width,
        height=video.height,
        size_bytes=video.size_bytes,
        tags=list(video.tags),
        state=video.state,
        reason=video.reason,
        segments=[
            SegmentOut(segment=segment.number, start=segment.start_seconds, end=segment.end_seconds)
            for segment in video.segments
        ],
        captions=[caption.text for caption in video.captions],
        thumbnail_url=thumbnail_url(video.video_id),
        stream_url=stream_url(video.video_id),
    )
