"""The body of a search's answer, written straight from the result: the bytes that ``schemas.SearchAnswer`` would give.

A page of ten hits holds some 130 objects; making a checked model of each, only to take it apart again, took longer
than everything else between the engine and the socket. The models stay what describes the answer (``/docs``, clients)
and what tests compare these bytes with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from service.query import Hit, SearchResult
from service.schemas import stage_ms, stream_url, thumbnail_url


def search_response(results: Sequence[SearchResult], *, many: bool) -> Response:
    """``ManyAnswers`` if ``many``, else the ``SearchAnswer`` of the only result."""
    answers = [_answer(result) for result in results]
    return Response(to_json({"results": answers} if many else answers[0]), media_type="application/json")


def _answer(result: SearchResult) -> dict[str, Any]:
    source = result.source
    return {
        "hits": [_hit(hit) for hit in result.hits],
        "source": {
            "generation": source.generation,
            "fingerprint": source.fingerprint,
            "stage_ms": stage_ms(source),
        },
    }


def _hit(hit: Hit) -> dict[str, Any]:
    frames, moment = hit.frames, hit.frames.moment_seconds
    return {
        "video_id": hit.video_id,
        "segment": hit.segment,
        "start": hit.start_seconds,
        "end": hit.end_seconds,
        "score": hit.score,
        "stage1_score": hit.stage1_score,
        "moment": moment,
        "frame_weights": [
            {"time": time, "weight": weight} for time, weight in zip(frames.seconds, frames.weights, strict=True)
        ],
        "title": hit.title,
        "duration_seconds": hit.duration_seconds,
        "tags": hit.tags,
        "thumbnail_url": thumbnail_url(hit.video_id, moment),
        "stream_url": stream_url(hit.video_id),
    }
