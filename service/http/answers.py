"""The body of a search's answer, written straight from the result: the bytes that ``schemas.SearchAnswer`` would give.

A page of ten hits holds some 130 objects; making a checked model of each, only to take it apart again, took longer
than everything else between the engine and the socket. The models stay what describes the answer (``/docs``, clients)
and what tests compare these bytes with. Hits are written where they were computed, in the same thread and at once: they
still lie in the processor's caches, and the event loop has the next request to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from service.schemas.search import stage_ms, stream_url, thumbnail_url
from service.search.query import Hit, SearchQuery, SearchResult

Search = Callable[[Sequence[SearchQuery]], list[SearchResult]]


def writing(search: Search) -> Search:
    """``search``, with ``hits_json`` of each result written; that counts to its stage ``answer``."""

    def written(queries: Sequence[SearchQuery]) -> list[SearchResult]:
        results = search(queries)
        started = perf_counter()
        pages = [_hits_json(result.hits) for result in results]
        seconds = perf_counter() - started
        return [_with_json(result, page, seconds) for result, page in zip(results, pages, strict=True)]

    return written


def search_response(results: Sequence[SearchResult], *, many: bool) -> Response:
    """``ManyAnswers`` if ``many``, else the ``SearchAnswer`` of the only result."""
    answers = [_answer(result) for result in results]
    body = b'{"results":[%s]}' % b",".join(answers) if many else answers[0]
    return Response(body, media_type="application/json")


def _with_json(result: SearchResult, page: bytes, seconds: float) -> SearchResult:
    stages = result.source.stage_seconds
    source = replace(result.source, stage_seconds={**stages, "answer": stages.get("answer", 0.0) + seconds})
    return replace(result, source=source, hits_json=page)


def _answer(result: SearchResult) -> bytes:
    source = result.source
    told = {
        "generation": source.generation,
        "fingerprint": source.fingerprint,
        "stage_ms": stage_ms(source),
        "emcl": source.emcl,
        "strength": source.strength,
    }
    return b'{"hits":%s,"source":%s}' % (result.hits_json or _hits_json(result.hits), to_json(told))


def _hits_json(hits: Sequence[Hit]) -> bytes:
    return to_json([_hit(hit) for hit in hits])


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
