"""Transcripts: what is said in a video, as captions of its player; put, replaced and removed."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from starlette.responses import Response

from indexer.errors import TranscriptError
from indexer.sources.transcripts import LANGUAGE, MOST_CUES, UNKNOWN, Parsed, parse, suffix_of, webvtt_of
from indexer.store.records import TranscriptRow
from service.access.gate import require
from service.errors import NotFound, Unprocessable
from service.http.conditional import is_unmodified, not_modified
from service.schemas.library import TranscriptPut
from service.schemas.search import VIDEO_ID
from service.services import ServicesDep

router = APIRouter(prefix="/v1/videos", tags=["videos"], dependencies=[require("search")])

_CHECK_FIRST = {"Cache-Control": "private, no-cache"}  # it may change at any time
_MEDIA_TYPE = "text/vtt"
_CONTENT = {"type": "string", "format": "binary", "description": "WebVTT, SubRip or Whisper's JSON."}
_BODY: dict[str, Any] = {  # one kind: generators of clients know no others than the usual ones
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _CONTENT}}}
}
_FILE: dict[int | str, dict[str, Any]] = {200: {"content": {_MEDIA_TYPE: {}}, "description": "A WebVTT file."}}

VideoId = Annotated[str, InPath(pattern=VIDEO_ID, description="SHA-256 of the video's bytes, in hexadecimal.")]
Language = Annotated[str, Query(pattern=f"^{LANGUAGE}$", description="BCP 47 tag; `und` if it is not known.")]
AnyLanguage = Annotated[str | None, Query(pattern=f"^{LANGUAGE}$", description="BCP 47 tag. Default: see below.")]


@router.get("/{video_id}/transcript", summary="What is said in a video", response_class=Response, responses=_FILE)
@router.head("/{video_id}/transcript", include_in_schema=False)
async def get_transcript(
    video_id: VideoId, request: Request, services: ServicesDep, language: AnyLanguage = None
) -> Response:
    """The transcript as WebVTT, for players; without `language`, the first that the video lists."""

    def read() -> str:
        with services.engine.live.lease() as generation:
            generation.video(video_id)
            known = [one.language for one in generation.reader.transcripts(video_id)]
            wanted = language or (known[0] if known else None)
            if wanted not in known:
                raise _no_transcript(video_id, language, known)
            return webvtt_of(generation.reader.cues(video_id, wanted))

    content = (await asyncio.to_thread(read)).encode()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    if is_unmodified(request, etag):
        return not_modified(etag, _CHECK_FIRST)
    return Response(content, media_type=_MEDIA_TYPE, headers={**_CHECK_FIRST, "ETag": etag})


@router.put(
    "/{video_id}/transcript",
    summary="Put or replace a transcript",
    openapi_extra=_BODY,
    dependencies=[require("write")],
)
async def put_transcript(
    video_id: VideoId, request: Request, services: ServicesDep, language: Language = UNKNOWN
) -> TranscriptPut:
    """The body is a WebVTT or SubRip file, or Whisper's JSON; the next search finds its words.

    It replaces the transcript in that language, and files and tracks in that language do not replace it.
    """
    content = await request.body()
    parsed = await asyncio.to_thread(_parsed, content)
    row = TranscriptRow(language=language, origin="http", source="", version="", cues=parsed.cues)
    await asyncio.wrap_future(services.library.put_transcript(video_id, row))
    return TranscriptPut(language=language, cues=len(parsed.cues), notes=list(parsed.notes))


@router.delete(
    "/{video_id}/transcript", summary="Remove a transcript", status_code=204, dependencies=[require("write")]
)
async def remove_transcript(video_id: VideoId, services: ServicesDep, language: AnyLanguage = None) -> None:
    """No search finds its words any more; without `language`, all transcripts of the video.

    Files and tracks in a removed language do not bring it back; `PUT` does.
    """
    await asyncio.wrap_future(services.library.remove_transcript(video_id, language))


def _parsed(content: bytes) -> Parsed:
    try:
        parsed = parse(content, suffix_of(content))
        if parsed.cues:
            return parsed
        raise TranscriptError("it has no cue with text")
    except TranscriptError as error:
        raise Unprocessable(
            f"the transcript cannot be used: {error}",
            expected=f"WebVTT, SubRip or Whisper's JSON with 1 to {MOST_CUES:,} cues",
            next_step="correct it, or convert it to WebVTT",
        ) from error


def _no_transcript(video_id: str, language: str | None, known: list[str]) -> NotFound:
    which = "no transcript" if language is None else f"no transcript in {language!r}"
    return NotFound(
        f"video {video_id} has {which}",
        expected=f"one of {', '.join(known)}" if known else "a video with a transcript",
        next_step=f"see `transcripts` in GET /v1/videos/{video_id}, or put one",
    )
