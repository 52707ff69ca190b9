"""Zero-shot classification: which of some labels describe an indexed video, or an uploaded one."""

from __future__ import annotations

from time import perf_counter

from fastapi import APIRouter, Request

from model.evaluate.labels import DEFAULT_PROMPT, MAX_LABEL_CHARS, MAX_LABELS
from service.access.gate import require
from service.errors import Unprocessable
from service.http.disconnect import unless_gone
from service.http.uploads import upload_form
from service.schemas.search import ClassifyAnswer, ClassifyRequest, UploadOut
from service.search.values import ClassifyQuery
from service.services import ServicesDep

UPLOAD_PATH = "/v1/classify/video"
# 1,000 labels of 200 characters, up to four bytes each, with some 90 bytes of boundary and headers around each.
_TEXTS_BYTES = MAX_LABELS * (4 * MAX_LABEL_CHARS + 256)
_FIELDS = {
    "labels": {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": MAX_LABEL_CHARS},
        "minItems": 1,
        "maxItems": MAX_LABELS,
        "description": "Different labels, each as a part of its own.",
    },
    "prompt": {"type": "string", "default": DEFAULT_PROMPT, "description": "As in `/v1/classify`."},
}

router = APIRouter(prefix="/v1", tags=["search"], dependencies=[require("search")])


@router.post("/classify", summary="Choose labels for an indexed video")
async def classify(asked: ClassifyRequest, request: Request, services: ServicesDep) -> ClassifyAnswer:
    """Rank `labels` for the indexed video `video_id`, or for one `segment` of it.

    Each label is put into `prompt` and compared with the video's frames, which are averaged at unit norm. The
    probabilities are those among the labels that were given, at the model's own scale.
    """
    query = asked.to_query()
    services.engine.limits.check_labels(query.labels, query.prompt)
    work = unless_gone(request, services.compute(lambda: services.engine.classify(query)))
    return ClassifyAnswer.of(await services.telemetry.timed(work))


@router.post(UPLOAD_PATH.removeprefix("/v1"), summary="Choose labels for a video", openapi_extra=upload_form(_FIELDS))
async def classify_video(request: Request, services: ServicesDep) -> ClassifyAnswer:
    """Rank `labels` for a video in the form field `file`, as `/v1/classify`. Nothing of it is kept."""
    received = perf_counter()
    receiving = services.receiver.receive(request, texts=("labels", "prompt"), texts_bytes=_TEXTS_BYTES)
    async with receiving as upload:
        services.telemetry.note("receive", perf_counter() - received)
        labels, prompts = tuple(upload.texts.get("labels", ())), upload.texts.get("prompt", [DEFAULT_PROMPT])
        if len(prompts) != 1:
            raise Unprocessable(f"got {len(prompts)} prompts", expected="one", next_step="send the field prompt once")
        services.engine.limits.check_labels(labels, prompts[0])
        with services.telemetry.stage("decode"):
            video = await unless_gone(request, services.decode(upload.file))
    query = ClassifyQuery(labels=labels, prompt=prompts[0], frames_FHWC=video.frames_FHWC)
    work = unless_gone(request, services.compute(lambda: services.engine.classify(query)))
    result = await services.telemetry.timed(work)
    return ClassifyAnswer.of(result, UploadOut(duration_seconds=video.duration_seconds, frames=len(video.frames_FHWC)))
