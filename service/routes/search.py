"""Searching by text, by an indexed video or by an uploaded one; and the two stages on their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import IO, Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from service.access.gate import require, sees_paths
from service.errors import Forbidden, Gone, NotFound, Unprocessable
from service.http.conditional import attachment
from service.http.disconnect import unless_gone
from service.http.uploads import upload_form
from service.media.files import Moment, find_file
from service.media.sandbox import UploadedFrames
from service.schemas.search import (
    EmbeddingsAnswer,
    EmbeddingsRequest,
    ExportRequest,
    ManyAnswers,
    RerankRequest,
    SearchAnswer,
    SearchRequest,
    SourceOut,
    UploadAnswer,
    UploadOut,
    clip_url,
)
from service.search.playlists import (
    MEDIA_TYPES,
    MOST_PICTURES,
    SUFFIXES,
    ListedMoment,
    edit_list,
    m3u_playlist,
    picture_page,
)
from service.search.values import Group, Hit, Ranking, Rerank, SearchQuery, SearchResult, UploadQuery
from service.services import Services, ServicesDep

PATH, UPLOAD_PATH, IMAGE_PATH = "/v1/search", "/v1/search/video", "/v1/search/image"


def _upload_ranking(
    k: Annotated[int, Query(description="Most captions, and most videos.")] = 10,
    offset: Annotated[int, Query(description="Captions and videos to leave out before the first.")] = 0,
    candidates: Annotated[
        int | None, Query(description="Candidates from stage 1 to rerank. Default: the checkpoint's, usually 100.")
    ] = None,
    rerank: Annotated[Rerank, Query(description="As in `/v1/search`.")] = "emcl",
    group: Annotated[Group, Query(description="As in `/v1/search`, for the similar videos.")] = "video",
) -> Ranking:
    return Ranking(k=k, offset=offset, candidates=candidates, rerank=rerank, group=group)


UploadRanking = Annotated[Ranking, Depends(_upload_ranking)]

router = APIRouter(prefix="/v1", tags=["search"], dependencies=[require("search")])


@router.post("/search", summary="Find moments in videos", response_model=SearchAnswer | ManyAnswers)
async def search(asked: SearchRequest, request: Request, services: ServicesDep) -> Response:
    """Rank the indexed videos for a `text`, for each of several `texts`, or for likeness to an indexed `video_id`.

    Stage 1 takes `candidates` segments from the index; stage 2 pools the frames of each by the query, corrects query
    and candidates with EMCL, and ranks by cosine. `offset + k` may not exceed `candidates`. `normalise: qb-norm`
    demotes segments that are near to every text.
    """
    results = await _results(asked, request, services)
    answers = [SearchAnswer.of(result, with_paths=sees_paths(request)) for result in results]
    answer = answers[0] if asked.texts is None else ManyAnswers(results=answers)
    return Response(answer.model_dump_json(), media_type="application/json")


async def _results(asked: SearchRequest, request: Request, services: Services) -> list[SearchResult]:
    """One result for each query of a request, which is checked before anything is computed."""
    given = [name for name in ("text", "texts", "video_id") if getattr(asked, name) is not None]
    if len(given) != 1:
        raise Unprocessable(
            f"got {' and '.join(given) or 'none'} of text, texts and video_id",
            expected="exactly one of them",
            next_step="send one of them",
        )
    limits = services.engine.limits
    if asked.texts is not None:
        limits.check_texts(tuple(asked.texts))
    if asked.filter.folder is not None and not sees_paths(request):
        raise Forbidden(
            "filtering by folder reveals where files are, which this key may not see",
            expected="a key of scope admin",
            next_step="leave folder out, or use an admin key",
        )
    queries = asked.to_queries()
    for query in queries:
        limits.check_search(query)
    if asked.video_id is not None:
        await _check_indexed(services, queries[0])
    if asked.normalise != "none":
        services.engine.check_bank()
    if asked.min_confidence > 0:
        services.engine.check_confidence()
    work = unless_gone(request, services.search(queries))
    return await services.telemetry.timed(work, batched=True)


@router.post("/search/export", summary="Save the hits of a search as a file", response_class=Response)
async def export_search(asked: ExportRequest, request: Request, services: ServicesDep) -> Response:
    """The hits of a search as a playlist (`m3u`), an edit decision list (`edl`, CMX 3600) or one page with pictures
    (`html`) that needs no other file. Takes the fields of `/v1/search` except `texts`.

    The playlist has an address of each moment's clip, which players can open where the service asks for no key.
    """
    if asked.texts is not None:
        raise Unprocessable("got texts", expected="text or video_id", next_step="send one request for each text")
    if asked.format == "html" and asked.k > MOST_PICTURES:
        raise Unprocessable(
            f"k is {asked.k}", expected=f"at most {MOST_PICTURES} with pictures", next_step="ask for fewer, or for m3u"
        )
    [result] = await _results(asked, request, services)
    base = str(request.base_url).rstrip("/")
    moments = [await _listed(hit, asked, base, services) for hit in result.hits]
    if asked.text is not None:
        name = asked.text
    else:
        name = f"Like {await asyncio.to_thread(_title_of, asked.video_id or '', services)}"
    if asked.format == "m3u":
        content = m3u_playlist(moments, name)
    elif asked.format == "edl":
        content = edit_list(moments, name, asked.frame_rate)
    else:
        content = picture_page(moments, name, datetime.now().astimezone())
    disposition = attachment(f"{name[:100]}{SUFFIXES[asked.format]}")
    headers = {"Content-Disposition": disposition, "Cache-Control": "no-store"}
    return Response(content, media_type=MEDIA_TYPES[asked.format], headers=headers)


def _title_of(video_id: str, services: Services) -> str:
    with services.engine.live.lease() as generation:
        return generation.video(video_id).title


async def _listed(hit: Hit, asked: ExportRequest, base: str, services: Services) -> ListedMoment:
    """A hit as an entry of a list. A video that was removed since, or whose file is gone, keeps its title alone."""

    def find() -> tuple[str, Path | None, bool]:
        with services.engine.live.lease() as generation:
            try:
                video = generation.video(hit.video_id)
                path = find_file(video)
            except (NotFound, Gone):
                return hit.title, None, False
        return f"{hit.title}{path.suffix}", path, video.has_broken_clock

    name, path, check_clock = await asyncio.to_thread(find)
    seconds = hit.moment_seconds
    picture = None
    if asked.format == "html" and path is not None:
        moment = Moment(video_id=hit.video_id, path=path, milliseconds=round(seconds * 1000), check_clock=check_clock)
        try:
            picture = await services.thumbnails.picture(moment)
        except Unprocessable:
            picture = None  # a moment that does not decode is shown without one, as on the page
    if asked.format == "m3u":
        url = base + clip_url(hit.video_id, hit.start_seconds, hit.end_seconds)
    else:
        url = f"{base}/?play={hit.video_id}&t={seconds:.3f}"
    return ListedMoment(
        title=hit.title,
        name=name,
        url=url,
        start_seconds=hit.start_seconds,
        end_seconds=hit.end_seconds,
        moment_seconds=seconds,
        is_cut=asked.format == "m3u",
        snippet=hit.snippet,
        picture=picture,
    )


async def _check_indexed(services: ServicesDep, query: SearchQuery) -> None:
    """Check before queueing: a query that fails makes its whole batch run again one by one."""
    await asyncio.to_thread(services.engine.check_indexed, query)


@router.post(UPLOAD_PATH.removeprefix("/v1"), summary="Find captions for a video", openapi_extra=upload_form())
async def search_video(request: Request, services: ServicesDep, ranking: UploadRanking) -> UploadAnswer:
    """Rank captions, and similar indexed videos, for a video in the form field `file`. Nothing of it is kept.

    It is decoded in a process of its own, within limits of size, duration, memory and time (`GET /v1/index` names
    those of size and duration).
    """
    return await _search_upload(request, services, ranking, services.decode)


@router.post(
    IMAGE_PATH.removeprefix("/v1"), summary="Search with a picture", openapi_extra=upload_form(file="A picture.")
)
async def search_image(request: Request, services: ServicesDep, ranking: UploadRanking) -> UploadAnswer:
    """Rank indexed videos, and captions, for the picture in the form field `file`. Nothing of it is kept.

    JPEG, PNG, WebP, GIF (the first picture), BMP and TIFF. It is looked up as a video of one frame: videos by their
    likeness, without EMCL, which is between texts and videos.
    """
    return await _search_upload(request, services, ranking, services.decode_still)


async def _search_upload(
    request: Request,
    services: Services,
    ranking: Ranking,
    decode: Callable[[IO[bytes]], Awaitable[UploadedFrames]],
) -> UploadAnswer:
    """Captions and videos for an upload that ``decode`` turns into frames."""
    services.engine.limits.check_ranking(ranking)
    received = perf_counter()
    async with services.receiver.receive(request) as upload:
        services.telemetry.note("receive", perf_counter() - received)
        with services.telemetry.stage("decode"):
            video = await unless_gone(request, decode(upload.file))
    query = UploadQuery(frames_FHWC=video.frames_FHWC, timestamps_seconds=video.timestamps_seconds, ranking=ranking)
    work = unless_gone(request, services.compute(lambda: services.engine.search_uploads([query])))
    results = await services.telemetry.timed(work)
    decoded = UploadOut(duration_seconds=video.duration_seconds, frames=len(video.frames_FHWC))
    return UploadAnswer.of(results[0], decoded, with_paths=sees_paths(request))


@router.post("/rerank", summary="Score given segments for a text")
async def rerank_segments(asked: RerankRequest, request: Request, services: ServicesDep) -> SearchAnswer:
    """Stage 2 alone: the given segments are the candidates, and all of them are hits, best first."""
    query = asked.to_query()
    services.engine.limits.check_rerank(query)
    work = unless_gone(request, services.compute_on_texts([query.text], lambda: services.engine.rerank([query])))
    results = await services.telemetry.timed(work)
    return SearchAnswer.of(results[0], with_paths=sees_paths(request))


@router.post("/embeddings", summary="Embed texts")
async def embed_texts(asked: EmbeddingsRequest, request: Request, services: ServicesDep) -> EmbeddingsAnswer:
    """The unit vectors that stage 1 compares with the index: one for each text, mapped by the frozen EMCL map."""
    texts = tuple(asked.texts)
    services.engine.limits.check_texts(texts)
    work = unless_gone(request, services.compute_on_texts(texts, lambda: services.engine.embed(texts)))
    rows_ND, source = await services.telemetry.timed(work)
    return EmbeddingsAnswer(embeddings=rows_ND.tolist(), dim=rows_ND.shape[1], source=SourceOut.of(source))
