"""The three routes of clip-retrieval's backend that its ``ClipClient`` uses, in that backend's shapes.

Behaviour follows clip-retrieval 2.45 (MIT licence), ``clip_back.py`` and ``clip_client.py``: the body is JSON whatever
its Content-Type says; an answer has one entry for each of ``num_result_ids`` results, of which the first ``num_images``
carry metadata; ``id`` is an integer (here: of a segment) that ``/metadata`` describes.

Nothing is silently dropped: an option that would change the answer is refused with a reason
(pictures, URLs, ``use_mclip``, ``modality: text``); one that asks for a filter or a re-ranking by a model that this
service does not have, and that the client sends by default, is accepted and named in the answer's
``X-Not-Applied`` header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.access.gate import require
from service.errors import NotFound, Unprocessable
from service.http.disconnect import unless_gone
from service.schemas.search import stream_url
from service.search import ranking
from service.search.live_index import Generation
from service.search.values import Hit, Ranking, SearchQuery
from service.services import Services, ServicesDep

INDEX_NAME = "videos"
NOT_APPLIED_HEADER = "X-Not-Applied"
_MAX_IDS = 1000
_LARGEST_ID = 2**63 - 1  # what an index can number

router = APIRouter(tags=["clip-retrieval"], dependencies=[require("search")])


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KnnRequest(_Body):
    """A query as ``ClipClient`` sends it: exactly one of ``text`` and ``embedding_input``."""

    text: str | None = Field(None, description="What to look for; found and reranked as in `/v1/search`.")
    embedding_input: list[float] | None = Field(
        None, description="A vector of the space of `/v1/embeddings`; compared with the index, not reranked."
    )
    image: str | None = Field(None, description="Refused: pictures are not accepted as queries.")
    image_url: str | None = Field(None, description="Refused: no URL is ever fetched.")
    modality: Literal["image", "text"] = Field("image", description="`image`: videos. `text` is refused.")
    indice_name: str | None = Field(None, description=f"`{INDEX_NAME}`, the only one.")
    num_images: int = Field(40, ge=1, description="Results that carry metadata.")
    num_result_ids: int | None = Field(None, ge=1, description="Results. Default: `num_images`.")
    deduplicate: bool = Field(False, description="One result for each video, its best segment.")
    use_mclip: bool = Field(False, description="Refused if true: there is one model.")
    use_safety_model: bool = Field(False, description="Not applied: this service has no such model.")
    use_violence_detector: bool = Field(False, description="Not applied: this service has no such model.")
    aesthetic_score: int | Literal[""] | None = Field(None, description="Not applied: this service has no such model.")
    aesthetic_weight: float | Literal[""] | None = Field(None, description="Not applied, as `aesthetic_score`.")

    @property
    def count(self) -> int:
        """How many results are wanted."""
        return self.num_images if self.num_result_ids is None else self.num_result_ids

    @property
    def not_applied(self) -> list[str]:
        """Options that ask for models that this service does not have."""
        wanted = [name for name in ("use_safety_model", "use_violence_detector") if getattr(self, name)]
        return wanted + (["aesthetic_score"] if self.aesthetic_score not in (None, "") else [])


class KnnHit(_Body):
    """One result. Behind the first ``num_images`` there are only ``id`` and ``similarity``."""

    id: int = Field(description="Of the segment, for `/metadata`.")
    similarity: float = Field(description="Cosine: of the reranking for texts, of the index for embeddings.")
    url: str | None = Field(
        None, description="The video, from the moment on; for embeddings, from the segment's start."
    )
    caption: str | None = Field(None, description="The video's first caption, else its title.")
    video_id: str | None = None
    segment: int | None = None
    start: float | None = None
    end: float | None = None
    title: str | None = None
    tags: list[str] | None = None


class MetadataRequest(_Body):
    """Ids that ``/knn-service`` answered."""

    ids: list[Annotated[int, Field(ge=0, le=_LARGEST_ID)]] = Field(max_length=_MAX_IDS)
    indice_name: str | None = None


class MetadataEntry(_Body):
    """The metadata of one id."""

    id: int
    metadata: dict[str, Any]


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}


@router.get("/indices-list", summary="clip-retrieval: names of indices")
async def clip_retrieval_indices() -> list[str]:
    """The one index, by the name that `indice_name` takes."""
    return [INDEX_NAME]


@router.post(
    "/knn-service",
    summary="clip-retrieval: search",
    response_model_exclude_none=True,
    openapi_extra=_json_body(KnnRequest),
)
async def clip_retrieval_knn(request: Request, response: Response, services: ServicesDep) -> list[KnnHit]:
    """Segments for a text or an embedding, as clip-retrieval's `ClipClient` asks for them."""
    asked = await _parse(request, KnnRequest)
    _check(asked)
    if asked.not_applied:
        response.headers[NOT_APPLIED_HEADER] = ", ".join(asked.not_applied)
    base = str(request.base_url).rstrip("/")
    if asked.embedding_input is not None:
        return await unless_gone(request, services.compute(lambda: _by_embedding(asked, services, base)))
    return await _by_text(asked, request, services, base)


@router.post("/metadata", summary="clip-retrieval: describe results", openapi_extra=_json_body(MetadataRequest))
async def clip_retrieval_metadata(request: Request, services: ServicesDep) -> list[MetadataEntry]:
    """The metadata of the segments with these ids."""
    asked = await _parse(request, MetadataRequest)
    _check_index(asked.indice_name)
    base = str(request.base_url).rstrip("/")

    def read() -> list[KnnHit]:
        with services.engine.live.lease() as generation:
            return _described(generation, [(number, 0.0) for number in asked.ids], len(asked.ids), base)

    return [
        MetadataEntry(id=hit.id, metadata=hit.model_dump(exclude={"id", "similarity"}, exclude_none=True))
        for hit in await asyncio.to_thread(read)
    ]


async def _parse(request: Request, model: type[Any]) -> Any:
    """The body, of whatever Content-Type: the client sends none."""
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}" for problem in error.errors()]
        raise Unprocessable(
            "; ".join(wrong)[:2000],
            expected="the JSON that clip-retrieval's ClipClient sends",
            next_step="correct the fields; /docs lists them",
        ) from error


def _check(asked: KnnRequest) -> None:
    """Refuse what would change the answer and cannot."""
    _check_index(asked.indice_name)
    if asked.image is not None or asked.image_url is not None:
        raise _refused(
            "a picture as a query" if asked.image is not None else "a URL as a query",
            "text or embedding_input",
            "send a video file to POST /v1/search/video; no URL is ever fetched",
        )
    if (asked.text is None or asked.text == "") == (asked.embedding_input is None):
        raise _refused("neither or both of text and embedding_input", "exactly one", "send one of them")
    if asked.modality != "image":
        raise _refused(
            "modality text", "modality image, which finds videos", "for captions, POST a video to /v1/search/video"
        )
    if asked.use_mclip:
        raise _refused("use_mclip", "use_mclip false", "leave it out: texts are encoded by the model of the index")


def _check_index(name: str | None) -> None:
    if name not in (None, INDEX_NAME):
        raise NotFound(
            f"there is no index {name[:80]!r}",
            expected=f"{INDEX_NAME!r}, or null",
            next_step="see GET /indices-list",
        )


def _refused(got: str, expected: str, next_step: str) -> Unprocessable:
    return Unprocessable(f"got {got}", expected=expected, next_step=next_step)


async def _by_text(asked: KnnRequest, request: Request, services: Services, base: str) -> list[KnnHit]:
    wanted = Ranking(
        k=asked.count,
        candidates=max(asked.count, services.engine.limits.default_candidates),
        group="video" if asked.deduplicate else "segment",
    )
    query = SearchQuery(text=asked.text, ranking=wanted)
    services.engine.limits.check_search(query)
    work = unless_gone(request, services.search([query]))
    result = (await services.telemetry.timed(work, batched=True))[0]
    full, bare = result.hits[: asked.num_images], result.hits[asked.num_images :]
    captions = await asyncio.to_thread(_captions, services, full)
    return [
        KnnHit(
            id=hit.segment_id,
            similarity=hit.score,
            url=_url(base, hit.video_id, hit.moment_seconds),
            caption=captions[hit.video_id],
            video_id=hit.video_id,
            segment=hit.segment,
            start=hit.start_seconds,
            end=hit.end_seconds,
            title=hit.title,
            tags=list(hit.tags),
        )
        for hit in full
    ] + [KnnHit(id=hit.segment_id, similarity=hit.score) for hit in bare]


def _captions(services: Services, hits: Sequence[Hit]) -> dict[str, str]:
    """A caption for each video; the title, if it has none or was removed since it was found."""
    found = {hit.video_id: hit.title for hit in hits}
    with services.engine.live.lease() as generation:
        for video_id in found:
            with suppress(NotFound):
                if captions := generation.video(video_id).captions:
                    found[video_id] = captions[0].text
    return found


def _by_embedding(asked: KnnRequest, services: Services, base: str) -> list[KnnHit]:
    """Segments nearest to the embedding, best first, with their cosines; no reranking."""
    engine = services.engine
    wanted = Ranking(k=asked.count, candidates=max(asked.count, engine.limits.default_candidates))
    engine.limits.check_ranking(wanted)
    row_1D = _unit_row(asked.embedding_input or [], engine.encoder.dim)
    with engine.live.lease() as generation:
        candidates = ranking.find_segments(generation.reader, row_1D, engine.limits.candidates_of(wanted))
        if asked.deduplicate:
            wanted_videos = min(asked.count, generation.reader.counts.videos)
            candidates = ranking.find_further_videos(generation.reader, row_1D, candidates, wanted_videos)
        scored = ranking.Scored(candidates=candidates, scores_QC=candidates.stage1_QC, weights_QCF=None)
        order = scored.best_first(0)
        ids, scores = candidates.ids_QC[0, order], candidates.stage1_QC[0, order]
        found = [(int(number), float(score)) for number, score in zip(ids, scores, strict=True)]
        if asked.deduplicate:
            found = _one_for_each_video(generation, found)
        return _described(generation, found[: asked.count], asked.num_images, base)


def _one_for_each_video(generation: Generation, found: list[tuple[int, float]]) -> list[tuple[int, float]]:
    segments = generation.reader.segments([number for number, _ in found])
    best: dict[str, tuple[int, float]] = {}
    for segment, place in zip(segments, found, strict=True):
        best.setdefault(segment.video_id, place)
    return list(best.values())


def _unit_row(values: list[float], dim: int) -> NDArray[np.float32]:
    """The embedding (1, D) of norm 1. Raises ``Unprocessable`` for another dimension, zero, or NaN and infinity."""
    row_D = np.asarray(values, dtype=np.float64)
    largest = float(np.abs(row_D).max()) if row_D.shape == (dim,) else 0.0
    if not np.isfinite(largest) or largest == 0:
        raise _refused(
            f"an embedding of {len(values)} numbers" + ("" if len(values) != dim else " that is zero or not finite"),
            f"{dim} finite numbers, not all zero, in the space of this index",
            "make it with POST /v1/embeddings of this service",
        )
    row_D /= largest  # so that squares neither overflow nor vanish
    return (row_D / np.linalg.norm(row_D)).astype(np.float32)[None]


def _described(generation: Generation, places: list[tuple[int, float]], count: int, base: str) -> list[KnnHit]:
    """Segments with their similarity, the first ``count`` with metadata. Raises ``NotFound`` for an unknown id."""
    try:
        segments = generation.reader.segments([number for number, _ in places[:count]])
    except KeyError as error:
        raise NotFound(
            str(error.args[0]), expected="ids that /knn-service answered", next_step="search again: the index changed"
        ) from error
    described = []
    for segment, (number, score) in zip(segments, places, strict=False):
        video, card = generation.video(segment.video_id), generation.card(segment.video_id)
        described.append(
            KnnHit(
                id=number,
                similarity=score,
                url=_url(base, segment.video_id, segment.start_seconds),
                caption=video.captions[0].text if video.captions else card.title,
                video_id=segment.video_id,
                segment=segment.number,
                start=segment.start_seconds,
                end=segment.end_seconds,
                title=card.title,
                tags=list(card.tags),
            )
        )
    return described + [KnnHit(id=number, similarity=score) for number, score in places[count:]]


def _url(base: str, video_id: str, seconds: float) -> str:
    return f"{base}{stream_url(video_id)}#t={seconds:g}"
