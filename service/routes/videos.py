"""Adding, listing, editing, removing and streaming videos, and their pictures. Indexed videos are searchable."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from starlette.responses import FileResponse, Response

from indexer.store.records import VideoOrder
from service.access.gate import require
from service.errors import Unprocessable
from service.http.conditional import file_answer, is_unmodified, not_modified
from service.http.disconnect import unless_gone
from service.http.uploads import upload_form
from service.library.upload_queue import VideoDetails
from service.media.files import Moment, find_file, media_type
from service.media.sprites import WantedSprite, sprite_times
from service.schemas.library import (
    MAX_CAPTIONS,
    MAX_TAGS,
    MAX_TITLE_CHARS,
    VideoAdded,
    VideoEdit,
    VideoOut,
    VideosPage,
    check_caption,
    check_tags,
    check_title,
)
from service.schemas.search import VIDEO_ID
from service.services import Services, ServicesDep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from indexer.store.records import Video, VideoState

UPLOAD_PATH = "/v1/videos"

# A video is named by its bytes, so what is served under its name never changes; private, for it may need a key.
_FOREVER = "private, max-age=31536000, immutable"
_A_DAY = "private, max-age=86400"
_MAX_PAGE = 1000

router = APIRouter(prefix="/v1/videos", tags=["videos"], dependencies=[require("search")])

StateFilter = Literal["indexed", "failed", "pending", "any"]
_NONE: list[str] = []
_TEXTS = ("title", "tags", "captions")

_BESIDE_THE_FILE = {
    "title": {"type": "string", "maxLength": MAX_TITLE_CHARS, "description": "What to call it."},
    "tags": {"type": "array", "items": {"type": "string"}, "description": "Its tags."},
    "captions": {"type": "array", "items": {"type": "string"}, "description": "Its captions."},
}
_ADDED: dict[int | str, dict[str, Any]] = {200: {"model": VideoAdded, "description": "These bytes were known already."}}

VideoId = Annotated[str, InPath(pattern=VIDEO_ID, description="SHA-256 of the video's bytes, in hexadecimal.")]


@router.get("", summary="List videos")
async def list_videos(
    services: ServicesDep,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Videos to leave out before the first.")] = 0,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE, description="Most videos.")] = 100,
    state: Annotated[StateFilter, Query(description="`any` lists all, whatever their state.")] = "indexed",
    tag: Annotated[list[str], Query(max_length=MAX_TAGS, description="Only videos with all of these tags.")] = _NONE,
    title: Annotated[
        str | None, Query(min_length=1, max_length=MAX_TITLE_CHARS, description="Only titles that contain this.")
    ] = None,
    sort: Annotated[VideoOrder, Query(description="`newest`: last indexed first. Ties are in order of id.")] = "id",
) -> VideosPage:
    """A page of videos in the order of `sort`."""
    wanted: VideoState | None = None if state == "any" else state

    def read() -> VideosPage:
        with services.engine.live.lease() as generation:
            reader = generation.reader
            videos = reader.list_videos(offset, limit, state=wanted, tags=tag, title=title, order=sort)
            total = reader.count_videos(state=wanted, tags=tag, title=title)
            described = [VideoOut.of(video, reader.transcripts(video.video_id)) for video in videos]
        return VideosPage(videos=described, total=total, offset=offset, limit=limit)

    return await asyncio.to_thread(read)


@router.post(
    "",
    summary="Add a video",
    status_code=202,
    responses=_ADDED,
    openapi_extra=upload_form(_BESIDE_THE_FILE),
    dependencies=[require("write")],
)
async def add_video(request: Request, response: Response, services: ServicesDep) -> VideoAdded:
    """Store the video in the form field `file` and index it: 202, with the job that indexes it.

    `title`, `tags` and `captions` may come with it, the latter two several times. The same bytes again are the same
    video: 200, and nothing else happens. A video that cannot be decoded fails its job, and nothing of it is kept.
    """
    key = getattr(request.state, "key", None)
    async with services.receiver.receive(request, texts=_TEXTS) as upload:
        details = _details(services, upload.texts)
        accept = services.library.additions.accept
        added = await asyncio.to_thread(accept, upload.file, details, key_name=None if key is None else key.name)
    response.status_code = 202 if added.new else 200
    job_url = None if added.job_id is None else f"/v1/jobs/{added.job_id}"
    video_url = f"{UPLOAD_PATH}/{added.video_id}"
    response.headers["Location"] = job_url or video_url
    return VideoAdded(
        video_id=added.video_id,
        state="indexed" if added.job_id is None else "pending",
        job_id=added.job_id,
        video_url=video_url,
        job_url=job_url,
    )


@router.patch("/{video_id}", summary="Edit a video", dependencies=[require("write")])
async def edit_video(video_id: VideoId, asked: VideoEdit, services: ServicesDep) -> VideoOut:
    """Change the tags or the title of a video; searches use the new ones at once."""
    tags = None if asked.tags is None else check_tags(asked.tags)
    title = None if asked.title is None else check_title(asked.title)
    await asyncio.wrap_future(services.library.edit_video(video_id, tags=tags, title=title))
    return await asyncio.to_thread(_describe, services, video_id)


@router.delete("/{video_id}", summary="Remove a video", status_code=204, dependencies=[require("write")])
async def remove_video(video_id: VideoId, services: ServicesDep) -> None:
    """Remove a video and its captions from every search. Its file is deleted if it came over HTTP."""
    await asyncio.wrap_future(services.library.remove_video(video_id))
    await asyncio.to_thread(services.previews.forget, video_id)
    await asyncio.to_thread(services.sprites.forget, video_id)


@router.get("/{video_id}", summary="Describe a video")
async def get_video(video_id: VideoId, services: ServicesDep) -> VideoOut:
    """One video with its segments and captions; one that is still being added has none yet, and is `pending`."""
    accepted = services.library.additions.pending(video_id)
    if accepted is not None:
        return VideoOut.of_pending(accepted)
    return await asyncio.to_thread(_describe, services, video_id)


@router.get("/{video_id}/stream", summary="Play a video", response_class=FileResponse)
@router.head("/{video_id}/stream", include_in_schema=False)
async def stream_video(video_id: VideoId, request: Request, services: ServicesDep) -> Response:
    """The bytes of the file that was indexed, whole or in ranges."""

    def prepare() -> Response:
        path = find_file(_find(services, video_id))
        return file_answer(
            request,
            path,
            kind=media_type(path),
            etag=f'"{video_id}"',
            headers={"Cache-Control": _FOREVER},
            accel_redirect=services.settings.accel_redirect,
        )

    return await asyncio.to_thread(prepare)


@router.get("/{video_id}/thumbnail", summary="A picture of a moment", response_class=Response)
async def get_thumbnail(
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
    moment = Moment(
        video_id=video_id, path=path, milliseconds=round(seconds * 1000), check_clock=video.has_broken_clock
    )
    etag = f'"{video_id}-{moment.milliseconds}-{services.settings.thumbnail_width}"'
    if is_unmodified(request, etag):
        return not_modified(etag, {"Cache-Control": _A_DAY})
    picture = await unless_gone(request, services.thumbnails.picture(moment))
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": _A_DAY, "ETag": etag})


@router.get("/{video_id}/sprite", summary="Pictures of many moments in one", response_class=Response)
async def get_sprite(
    video_id: VideoId,
    request: Request,
    services: ServicesDep,
    segment: Annotated[
        int | None,
        Query(ge=0, le=2**31, description="A segment: a tile for each of its frames; default: the whole video."),
    ] = None,
) -> Response:
    """A JPEG of tiles of equal size, six in a row, from left to right and from top to bottom.

    Of a segment, there is a tile for each frame in `frame_weights` of its hits, in that order. Of the whole video there
    are 24: tile i, from 0, shows the moment at (i + 0.5) / 24 of its duration.
    """

    def prepare() -> tuple[WantedSprite, bool, bytes | None]:
        video = _find(services, video_id)
        wanted = WantedSprite(
            video_id=video_id,
            path=find_file(video),
            at_seconds=sprite_times(video, segment),
            side=services.sprites.side,
            check_clock=video.has_broken_clock,
        )
        is_known = is_unmodified(request, f'"{wanted.name}"')
        return wanted, is_known, None if is_known else services.sprites.kept(wanted)

    wanted, is_known, picture = await asyncio.to_thread(prepare)
    etag = f'"{wanted.name}"'
    if is_known:
        return not_modified(etag, {"Cache-Control": _A_DAY})
    if picture is None:
        picture = await unless_gone(request, services.sprites.picture(wanted))
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": _A_DAY, "ETag": etag})


def _find(services: Services, video_id: str) -> Video:
    with services.engine.live.lease() as generation:
        return generation.video(video_id)


def _describe(services: Services, video_id: str) -> VideoOut:
    with services.engine.live.lease() as generation:
        return VideoOut.of(generation.video(video_id), generation.reader.transcripts(video_id))


def _details(services: Services, texts: Mapping[str, Sequence[str]]) -> VideoDetails:
    """What was sent with a video, checked before anything is kept."""
    titles, captions = texts.get("title", ()), texts.get("captions", ())
    if len(titles) > 1 or len(captions) > MAX_CAPTIONS:
        raise Unprocessable(
            f"the form has {len(titles)} titles and {len(captions)} captions",
            expected=f"at most one title and {MAX_CAPTIONS} captions",
            next_step="send fewer of them",
        )
    captions = [check_caption(services.engine.limits, caption) for caption in captions]
    return VideoDetails(
        title=(check_title(titles[0]) or None) if titles else None,
        tags=check_tags(texts.get("tags", ())),
        captions=tuple(dict.fromkeys(captions)),
    )
