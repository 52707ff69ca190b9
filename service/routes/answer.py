"""Question answering: answers of the model to a question about an indexed video, or about an uploaded one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

from fastapi import APIRouter, Request

from model.evaluate.labels import MAX_ANSWERS, MAX_QUESTION_CHARS
from service.access.gate import require
from service.errors import Unprocessable
from service.http.disconnect import unless_gone
from service.http.uploads import upload_form
from service.schemas.search import AnswerRequest, QuestionAnswer, UploadOut
from service.search.values import AnswerQuery
from service.services import ServicesDep

UPLOAD_PATH = "/v1/answer/video"
_FIELDS = {
    "question": {"type": "string", "minLength": 1, "maxLength": MAX_QUESTION_CHARS},
    "top": {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_ANSWERS,
        "default": 5,
        "description": "As in `/v1/answer`.",
    },
}
# A question of up to four bytes a character, with boundary and headers, and the field `top`.
_TEXTS_BYTES = 4 * MAX_QUESTION_CHARS + 1024

router = APIRouter(prefix="/v1", tags=["search"], dependencies=[require("search")])


@router.post("/answer", summary="Answer a question about an indexed video")
async def answer(asked: AnswerRequest, request: Request, services: ServicesDep) -> QuestionAnswer:
    """Answer `question` about the indexed video `video_id`, or one `segment` of it, from its stored frame features.

    The answers are those of a fixed list that the model was trained with. Needs a model with an answer head; 409 says
    how to train one.
    """
    services.engine.check_answerer()
    services.engine.limits.check_question(asked.question, asked.top)
    query = asked.to_query()
    work = unless_gone(request, services.compute(lambda: services.engine.answer(query)))
    return QuestionAnswer.of(await services.telemetry.timed(work))


@router.post(
    UPLOAD_PATH.removeprefix("/v1"), summary="Answer a question about a video", openapi_extra=upload_form(_FIELDS)
)
async def answer_video(request: Request, services: ServicesDep) -> QuestionAnswer:
    """Answer `question` about a video in the form field `file`, as `/v1/answer`. Nothing of it is kept."""
    services.engine.check_answerer()
    received = perf_counter()
    receiving = services.receiver.receive(request, texts=("question", "top"), texts_bytes=_TEXTS_BYTES)
    async with receiving as upload:
        services.telemetry.note("receive", perf_counter() - received)
        question, top = _one(upload.texts, "question"), _number(_one(upload.texts, "top", "5"))
        services.engine.limits.check_question(question, top)
        with services.telemetry.stage("decode"):
            video = await unless_gone(request, services.decode(upload.file))
    query = AnswerQuery(question=question, top=top, frames_FHWC=video.frames_FHWC)
    work = unless_gone(request, services.compute(lambda: services.engine.answer(query)))
    result = await services.telemetry.timed(work)
    return QuestionAnswer.of(result, UploadOut(duration_seconds=video.duration_seconds, frames=len(video.frames_FHWC)))


def _one(texts: Mapping[str, Sequence[str]], name: str, default: str | None = None) -> str:
    given = texts.get(name, [] if default is None else [default])
    if len(given) != 1:
        raise Unprocessable(f"got {len(given)} fields {name}", expected="one", next_step=f"send the field {name} once")
    return given[0]


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise Unprocessable(
            f"top is {text[:40]!r}", expected=f"a whole number from 1 to {MAX_ANSWERS}", next_step="correct top"
        ) from error
