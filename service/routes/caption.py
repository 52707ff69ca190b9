"""Captioning: a caption that the model writes for an indexed video, or for an uploaded one."""

from __future__ import annotations

from time import perf_counter

from fastapi import APIRouter, Request

from service.access.gate import require
from service.http.disconnect import unless_gone
from service.http.uploads import upload_form
from service.schemas.search import CaptionRequest, UploadOut, WrittenCaptionAnswer
from service.search.values import CaptionQuery
from service.services import ServicesDep

UPLOAD_PATH = "/v1/caption/video"

router = APIRouter(prefix="/v1", tags=["search"], dependencies=[require("search")])


@router.post("/caption", summary="Write a caption for an indexed video")
async def caption(asked: CaptionRequest, request: Request, services: ServicesDep) -> WrittenCaptionAnswer:
    """Write a caption for the indexed video `video_id`, or for one `segment` of it, from its stored frame features.

    Needs a model with a caption head; 409 says how to train one.
    """
    services.engine.check_captioner()
    query = asked.to_query()
    work = unless_gone(request, services.compute(lambda: services.engine.caption(query)))
    return WrittenCaptionAnswer.of(await services.telemetry.timed(work))


@router.post(UPLOAD_PATH.removeprefix("/v1"), summary="Write a caption for a video", openapi_extra=upload_form())
async def caption_video(request: Request, services: ServicesDep) -> WrittenCaptionAnswer:
    """Write a caption for a video in the form field `file`, as `/v1/caption`. Nothing of it is kept."""
    services.engine.check_captioner()
    received = perf_counter()
    async with services.receiver.receive(request) as upload:
        services.telemetry.note("receive", perf_counter() - received)
        with services.telemetry.stage("decode"):
            video = await unless_gone(request, services.decode(upload.file))
    query = CaptionQuery(frames_FHWC=video.frames_FHWC)
    work = unless_gone(request, services.compute(lambda: services.engine.caption(query)))
    result = await services.telemetry.timed(work)
    decoded = UploadOut(duration_seconds=video.duration_seconds, frames=len(video.frames_FHWC))
    return WrittenCaptionAnswer.of(result, decoded)
