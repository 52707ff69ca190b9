"""Search: encode, find candidates, rerank. Synchronous, batched, and without any web framework.

In: lists of ``service.search.values`` values. Out: as many results in the same order. A query's answer does not depend
on the queries that share its batch: they are a batch dimension, never one EM pass (``service.search.ranking`` says how
ties and the order of candidates are kept from mattering).

    text ─ encode ─ frozen map ─ FAISS: candidates ─ their frame features ─ pool by the text ─ EMCL pass ─ score

Legend: Q queries, C candidates, F frames, D channels, S image size.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from indexer.library import Wanted
from indexer.store.confidence import LINE
from model.emcl.active import ActiveEMCL, active_emcl
from service.errors import Conflict, NotFound
from service.search import ranking
from service.search.cache import LRUCache
from service.search.fusion import FusionWeights, find_words, fused_order, text_hits, with_found
from service.search.hits import caption_hits, segment_hits
from service.search.live_index import Generation, LiveIndex
from service.search.qb_norm import rescore, usable
from service.search.ranking import Candidates, Scored
from service.search.values import (
    AnswerHit,
    AnswerQuery,
    AnswerResult,
    CaptionHit,
    CaptionQuery,
    CaptionResult,
    ClassifyQuery,
    ClassifyResult,
    Hit,
    LabelHit,
    QueryLimits,
    Ranking,
    Rerank,
    RerankQuery,
    SearchQuery,
    SearchResult,
    SegmentRef,
    Source,
    UploadQuery,
    UploadResult,
    VideoFilter,
)
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.library import FoundByWords, Library, Wanted
    from indexer.store.reader import Serving
    from model.config import SamplingConfig
    from model.encoder import Encoder

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

PROBE_TEXT = "a video"
NO_IDS: tuple[int, ...] = ()


class Engine:
    """Answers queries over the index that ``open_reader`` opens, with the model that the index was built with.

    Safe to call from several threads. Callers check queries with the ``check_`` methods of ``limits``
    before they call.
    """

    def __init__(
        self,
        encoder: Encoder,
        open_reader: Callable[[], Library],
        *,
        limits: QueryLimits,
        cache_entries: int,
        fusion: FusionWeights | None = None,
    ) -> None:
        self.encoder = encoder
        self.fusion = fusion or FusionWeights()
        self.limits = limits
        self.live = LiveIndex(open_reader)
        self.texts: LRUCache[tuple[str, str], Floats] = LRUCache(cache_entries)

    @property
    def sampling(self) -> SamplingConfig:
        """How the index sampled its videos, and so how an upload must be."""
        with self.live.lease() as generation:
            return generation.reader.manifest.sampling

    def close(self) -> None:
        """Close the index."""
        self.live.close()

    def reload(self) -> None:
        """Serve the newest generation. Raises ``Conflict`` if it cannot be; the present one is served on then."""
        try:
            self.live.reload()
        except ValueError as error:
            raise Conflict(
                f"the newest generation cannot be served: {error}",
                expected="a generation of the model that is loaded, with all its files",
                next_step="fix it as the detail says and reload again; the present generation is still served",
            ) from error

    def refresh(self) -> None:
        """Serve everything that is committed by now. Raises as ``reload`` does."""
        self.live.refresh()

    def check_indexed(self, query: SearchQuery) -> None:
        """Raise ``NotFound`` if a query names a video or a segment that is not indexed."""
        if query.video_id is not None:
            with self.live.lease() as generation:
                _segments_of(generation, query.video_id, query.segment)

    def check_bank(self) -> None:
        """Raise ``Conflict`` if what is served has no query bank of this model."""
        with self.live.lease() as generation:
            usable(generation.bank, generation.reader, self.encoder)

    def check_confidence(self) -> None:
        """Raise ``Conflict`` if hits of what is served have no confidence."""
        with self.live.lease() as generation:
            if generation.reader.counts.segments and not generation.reader.has_confidence:
                raise Conflict(
                    "this index knows no confidence: an earlier version published it",
                    expected="a generation with confidence.npz, for min_confidence",
                    next_step="publish one with `emcl index rebuild`, or leave min_confidence out",
                )

    def search(self, queries: Sequence[SearchQuery]) -> list[SearchResult]:
        """Rank indexed videos for texts, or for indexed videos ("more like this", the video itself left out).

        Raises ``NotFound`` for a video or segment that is not indexed.
        """
        with self.live.lease() as generation:
            results: dict[int, SearchResult] = {}
            for q, query in enumerate(queries):
                if query.ranking.fusion == "text":
                    results[q] = search_text(generation, query)
            others = [q for q in range(len(queries)) if q not in results]
            if others:
                watch = _Stopwatch()
                visual = [queries[q] for q in others]
                rows_QD, own = self._query_rows(generation, visual)
                watch.lap("encode")
                results |= zip(others, self._search_rows(generation, rows_QD, visual, own, watch), strict=True)
            return [results[q] for q in range(len(queries))]

    def search_uploads(self, uploads: Sequence[UploadQuery]) -> list[UploadResult]:
        """Rank captions, and similar indexed videos, for uploaded videos."""
        with self.live.lease() as generation:
            watch = _Stopwatch()
            features_QFD, mask_QF = self._encode_uploads(uploads)
            pooled_QD = self.encoder.pool(features_QFD, mask_QF)
            watch.lap("encode")
            captions = [
                self._captions(generation, upload, features_QFD[q : q + 1], mask_QF[q : q + 1], pooled_QD[q : q + 1])
                for q, upload in enumerate(uploads)
            ]
            watch.lap("captions")
            similar = [SearchQuery(ranking=upload.ranking) for upload in uploads]
            videos = self._search_rows(generation, pooled_QD, similar, [NO_IDS] * len(uploads), watch)
            return [
                UploadResult(captions=hits, hits=result.hits, source=result.source)
                for hits, result in zip(captions, videos, strict=True)
            ]

    def rerank(self, queries: Sequence[RerankQuery]) -> list[SearchResult]:
        """Score given segments for a text, best first. Raises ``NotFound`` for a segment that is not indexed."""
        with self.live.lease() as generation:
            watch = _Stopwatch()
            rows_QD = self._text_rows([query.text for query in queries])
            watch.lap("encode")
            return [
                self._rerank_one(generation, row_D, query, watch) for row_D, query in zip(rows_QD, queries, strict=True)
            ]

    def classify(self, query: ClassifyQuery) -> ClassifyResult:
        """Score labels for a video, best first, by its frames at unit norm and without EMCL.

        Raises ``NotFound`` for a video or segment that is not indexed.
        """
        from model.evaluate.labels import prompts_of
        from model.evaluate.zero_shot import classify

        with self.live.lease() as generation:
            watch = _Stopwatch()
            features_FD, mask_F = self._frame_features(generation, query)
            prompt_ND = self._text_rows(prompts_of(query.labels, query.prompt))
            watch.lap("encode")
            found = classify(self.encoder, features_FD, mask_F, query.labels, prompt_ND)
            watch.lap("answer")
            hits = tuple(LabelHit(label=item.label, score=item.score, probability=item.probability) for item in found)
            return ClassifyResult(labels=hits, source=self._source(generation, watch, "none"))

    def check_captioner(self) -> None:
        """Raise ``Conflict`` if the model has no caption head."""
        from model.evaluate.captioning import NoHeadError, caption_head

        try:
            caption_head(self.encoder)
        except NoHeadError as error:
            raise _no_head(error, "a caption head", "captioning") from error

    def caption(self, query: CaptionQuery) -> CaptionResult:
        """Write a caption for a video. Raises ``NotFound`` for one that is not indexed."""
        from model.evaluate.captioning import write_caption

        with self.live.lease() as generation:
            watch = _Stopwatch()
            features_FD, mask_F = self._frame_features(generation, query)
            watch.lap("encode")
            written = write_caption(self.encoder, features_FD, mask_F)
            watch.lap("answer")
            source = self._source(generation, watch, "none")
            return CaptionResult(text=written.text, score=written.score, source=source)

    def check_answerer(self) -> None:
        """Raise ``Conflict`` if the model has no answer head."""
        from model.evaluate.answering import answer_head
        from model.evaluate.captioning import NoHeadError

        try:
            answer_head(self.encoder)
        except NoHeadError as error:
            raise _no_head(error, "an answer head", "qa") from error

    def answer(self, query: AnswerQuery) -> AnswerResult:
        """Answer a question about a video. Raises ``NotFound`` for one that is not indexed."""
        from model.evaluate.answering import answer_question

        with self.live.lease() as generation:
            watch = _Stopwatch()
            features_FD, mask_F = self._frame_features(generation, query)
            watch.lap("encode")
            found = answer_question(self.encoder, features_FD, mask_F, query.question, top=query.top)
            watch.lap("answer")
            return AnswerResult(
                answers=tuple(AnswerHit(text=one.text, probability=one.probability) for one in found),
                truncated=self.encoder.truncates(query.question),
                source=self._source(generation, watch, "none"),
            )

    def embed(self, texts: Sequence[str]) -> tuple[Floats, Source]:
        """The unit vectors (N, M) that the index compares, without the coordinates of hub bases."""
        with self.live.lease() as generation:
            watch = _Stopwatch()
            rows_ND = self._text_rows(texts)
            watch.lap("encode")
            mapped_NM = generation.reader.correction.base_rows(rows_ND, "text")
            return mapped_NM, self._source(generation, watch, "frozen")

    def active(self) -> ActiveEMCL:
        """The correction that `rerank: emcl` applies to what is served."""
        with self.live.lease() as generation:
            return active_emcl(self.encoder.config.emcl, generation.reader.correction)

    def demo_notice(self) -> str | None:
        """A warning if the demo model serves videos other than its own, else None."""
        with self.live.lease() as generation:
            return generation.demo_notice

    def probe(self) -> SearchResult:
        """One query through every stage without caches: the readiness check."""
        with self.live.lease() as generation:
            watch = _Stopwatch()
            rows_QD = self.encoder.encode_texts([PROBE_TEXT])
            watch.lap("encode")
            query = SearchQuery(text=PROBE_TEXT, ranking=Ranking(k=1))
            return self._search_rows(generation, rows_QD, [query], [NO_IDS], watch)[0]

    # Queries become raw rows.

    def _query_rows(self, generation: Generation, queries: Sequence[SearchQuery]) -> tuple[Floats, list[Sequence[int]]]:
        """Raw rows (Q, D), and for each query the segments that are its own and cannot be hits."""
        rows_QD = np.empty((len(queries), self.encoder.dim), dtype=np.float32)
        own: list[Sequence[int]] = [NO_IDS] * len(queries)
        texts = [q for q, query in enumerate(queries) if query.text is not None]
        if texts:
            rows_QD[texts] = self._text_rows([queries[q].text or "" for q in texts])
        for q, query in enumerate(queries):
            if query.video_id is not None:
                own[q], like = _segments_of(generation, query.video_id, query.segment)
                rows_QD[q] = generation.reader.segment_embeddings(np.array(like)).mean(axis=0)
        return rows_QD, own

    def _text_rows(self, texts: Sequence[str]) -> Floats:
        """Raw text features (N, D); those that were asked for before come from the cache."""
        fingerprint = self.encoder.fingerprint
        rows = {text: self.texts.get((fingerprint, text)) for text in texts}
        missing = [text for text, row in rows.items() if row is None]
        if missing:
            for text, row_D in zip(missing, self.encoder.encode_texts(missing), strict=True):
                rows[text] = row_D
                self.texts.put((fingerprint, text), row_D)
        return np.stack([row for text in texts if (row := rows[text]) is not None])

    def _frame_features(
        self, generation: Generation, query: ClassifyQuery | CaptionQuery | AnswerQuery
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Frame features (F, D) and mask (F) of all segments that are meant, or of uploaded frames."""
        if query.video_id is not None:
            _, meant = _segments_of(generation, query.video_id, query.segment)
            features, mask = generation.reader.segment_features(np.array(meant))
        else:
            assert query.frames_FHWC is not None
            upload = UploadQuery(frames_FHWC=query.frames_FHWC, timestamps_seconds=np.zeros(len(query.frames_FHWC)))
            features, mask = self._encode_uploads([upload])
        return features.reshape(-1, features.shape[-1]), mask.reshape(-1)

    def _encode_uploads(self, uploads: Sequence[UploadQuery]) -> tuple[Floats, NDArray[np.bool_]]:
        longest = max(len(upload.frames_FHWC) for upload in uploads)
        frames_QFHWC = np.zeros((len(uploads), longest, *self.encoder.preprocess.shape), dtype=np.uint8)
        mask_QF = np.zeros((len(uploads), longest), dtype=np.bool_)
        for q, upload in enumerate(uploads):
            frames_QFHWC[q, : len(upload.frames_FHWC)] = upload.frames_FHWC
            mask_QF[q, : len(upload.frames_FHWC)] = True
        return self.encoder.encode_videos(frames_QFHWC, mask_QF), mask_QF

    # Rows become hits.

    def _search_rows(
        self,
        generation: Generation,
        rows_QD: Floats,
        queries: Sequence[SearchQuery],
        own: Sequence[Sequence[int]],
        watch: _Stopwatch,
    ) -> list[SearchResult]:
        reader = generation.reader
        hits: dict[int, tuple[Hit, ...]] = {}
        for (asked, wanted, left_out), members in _alike(queries, own):
            allowed = _wanted(wanted)
            is_text, hubs = queries[members[0]].text is not None, asked.normalise == "none"
            mapped_QM = reader.correction.queries(rows_QD[members], "text" if is_text else "video", "videos", hubs=hubs)

            candidates = ranking.find_segments(
                reader, mapped_QM, self.limits.candidates_of(asked), wanted=allowed, left_out=left_out
            )
            watch.lap("candidates")
            words = {q: found for q in members if (found := find_words(reader, queries[q], allowed))}
            watch.lap("words")
            for place, q in enumerate(members):
                if q in words:
                    one = candidates.of(place)
                    hits[q] = self._fused(generation, rows_QD[q], mapped_QM[place], one, queries[q], words[q], allowed)
            visual = [place for place, q in enumerate(members) if q not in words]
            if not visual:
                watch.lap("rerank")
                continue
            if words:
                members, mapped_QM, candidates = [members[n] for n in visual], mapped_QM[visual], candidates.of(*visual)
            group = self._scored(generation, rows_QD[members], candidates, asked, is_text=is_text)
            watch.lap("rerank")
            for place, q in enumerate(members):
                page = queries[q].ranking
                hits[q] = segment_hits(self.encoder, generation, group, place, rows_QD[q], page, is_text=is_text)
                if len(hits[q]) == page.k or page.group == "segment":
                    continue
                more = ranking.find_further_videos(
                    reader,
                    mapped_QM[[place]],
                    candidates.of(place),
                    min(page.offset + page.k, reader.counts.videos),
                    wanted=allowed,
                    left_out=left_out,
                )
                if more.ids_QC.shape != candidates.of(place).ids_QC.shape:
                    scored = self._scored(generation, rows_QD[[q]], more, asked, is_text=is_text)
                    hits[q] = segment_hits(self.encoder, generation, scored, 0, rows_QD[q], page, is_text=is_text)
        watch.lap("answer")
        return [
            SearchResult(
                hits=_confident(page, query.ranking.min_confidence),
                nothing_fits=_nothing_fits(page),
                source=self._source(generation, watch, query.ranking.rerank),
                truncated=query.text is not None and self.encoder.truncates(query.text),
                unknown_script=None if query.text is None else self.encoder.unknown_script(query.text),
            )
            for page, query in zip((hits[q] for q in range(len(queries))), queries, strict=True)
        ]

    def _fused(
        self,
        generation: Generation,
        row_D: Floats,
        mapped_M: Floats,
        candidates: Candidates,
        query: SearchQuery,
        found: Sequence[FoundByWords],
        allowed: Wanted,
    ) -> tuple[Hit, ...]:
        """The page of one text whose words were found, ranked by both; ``candidates`` are those of stage 1."""
        reader, page = generation.reader, query.ranking
        by_words = {one.video_id: one for one in found}
        seen = _videos_of(reader, candidates)
        wanted = min(page.offset + page.k, reader.counts.videos)
        if page.group != "segment" and len({*seen.values(), *by_words}) < wanted:
            candidates = ranking.find_further_videos(reader, mapped_M[None], candidates, wanted, wanted=allowed)
            seen = _videos_of(reader, candidates)
        scored = self._scored(
            generation, row_D[None], with_found(reader, mapped_M, candidates, found), page, is_text=True
        )
        video_of = {number: one.video_id for one in found for number, *_ in one.segments} | seen
        order = fused_order(video_of, scored, found, page, self.fusion)
        hits = segment_hits(self.encoder, generation, scored, 0, row_D, page, is_text=True, order=order)
        return tuple(_explained(hit, by_words.get(hit.video_id), seen) for hit in hits)

    def _scored(
        self, generation: Generation, rows_QD: Floats, candidates: Candidates, asked: Ranking, *, is_text: bool
    ) -> Scored:
        """Candidates with the scores that ``asked`` ranks them by."""
        reader = generation.reader
        scored = ranking.score_segments(
            self.encoder,
            reader,
            rows_QD,
            candidates,
            asked.rerank,
            corrects=is_text,
            hubs=asked.normalise == "none",
        )
        if asked.normalise == "qb-norm":
            scored = rescore(scored, usable(generation.bank, reader, self.encoder), asked.rerank)
        return scored

    def _rerank_one(self, generation: Generation, row_D: Floats, query: RerankQuery, watch: _Stopwatch) -> SearchResult:
        reader = generation.reader
        ids_C = np.sort([_segment_id(generation, named) for named in query.segments])  # sums depend on their order
        items_CM = reader.correction.items(reader.segment_embeddings(ids_C), "videos")
        stage1_C = items_CM @ reader.correction.queries(row_D[None], "text", "videos")[0]
        candidates = ranking.sort_by_id(stage1_C[None], ids_C[None])
        watch.lap("candidates")
        scored = ranking.score_segments(self.encoder, reader, row_D[None], candidates, query.rerank)
        everything = Ranking(k=len(ids_C), candidates=len(ids_C), group="segment", rerank=query.rerank)
        hits = segment_hits(self.encoder, generation, scored, 0, row_D, everything, is_text=True)
        watch.lap("rerank")
        return SearchResult(
            hits=hits,
            source=self._source(generation, watch, query.rerank),
            truncated=self.encoder.truncates(query.text),
            unknown_script=self.encoder.unknown_script(query.text),
            nothing_fits=_nothing_fits(hits),
        )

    def _captions(
        self,
        generation: Generation,
        upload: UploadQuery,
        features_1FD: Floats,
        mask_1F: NDArray[np.bool_],
        pooled_1D: Floats,
    ) -> tuple[CaptionHit, ...]:
        reader, asked = generation.reader, upload.ranking
        mapped_1M = reader.correction.queries(pooled_1D, "video", "captions")
        candidates = ranking.find_captions(reader, mapped_1M, self.limits.candidates_of(asked))
        scored = ranking.score_captions(self.encoder, reader, features_1FD, mask_1F, candidates, asked.rerank)
        return caption_hits(self.encoder, reader, scored, upload, features_1FD[0], mask_1F[0])

    def _source(self, generation: Generation, watch: _Stopwatch, rerank: Rerank) -> Source:
        correction = generation.reader.correction
        mode, strength = "off", 0.0
        if rerank == "emcl":
            active = active_emcl(self.encoder.config.emcl, correction)
            mode, strength = active.mode, active.strength
        elif rerank == "frozen":
            mode, strength = correction.mode, correction.strength
        return Source(
            generation=generation.reader.manifest.generation,
            version=generation.version,
            fingerprint=self.encoder.fingerprint,
            stage_seconds=dict(watch.seconds),
            emcl=mode,
            strength=strength,
        )


def search_text(generation: Generation, query: SearchQuery) -> SearchResult:
    """Rank indexed videos by the words of a query alone; needs no model. Raises ``Conflict``, see ``text_hits``."""
    watch, reader = _Stopwatch(), generation.reader
    hits = text_hits(generation, query, _wanted(query.filter))
    watch.lap("words")
    return SearchResult(
        hits=hits,
        source=Source(
            generation=reader.manifest.generation,
            version=generation.version,
            fingerprint=reader.manifest.fingerprint,
            stage_seconds=watch.seconds,
        ),
    )


def _videos_of(reader: Library, candidates: Candidates) -> dict[int, str]:
    """The video of each segment among the candidates of the only query."""
    ids_C = candidates.ids_QC[0]
    return reader.videos_of(ids_C[ids_C >= 0])


def _explained(hit: Hit, found: FoundByWords | None, seen: Mapping[int, str]) -> Hit:
    """The hit with the reasons for it; ``seen`` are the segments that stage 1 found."""
    if found is None:
        return hit
    visual = ("visual",) if hit.segment_id in seen else ()
    if found.segment_of_passage not in (None, hit.segment_id):  # what is said is said in another of its segments
        return replace(hit, matched=(*visual, *(kind for kind in found.kinds if kind != "transcript")))
    return replace(hit, matched=(*visual, *found.kinds), snippet=found.snippet, passage=found.passage)


class _Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _no_head(error: Exception, head: str, task: str) -> Conflict:
    return Conflict(
        str(error).partition(";")[0],
        expected=f"a service whose model has {head}",
        next_step=f"train one by `emcl train` with `task: {task}` (docs/training.md; the index stays valid, because "
        "the model's features do not change), and serve the result with --model",
    )


def _alike(
    queries: Sequence[SearchQuery], own: Sequence[Sequence[int]]
) -> Iterator[tuple[tuple[Ranking, VideoFilter, Sequence[int]], list[int]]]:
    """Queries that can be looked up and scored together: those that agree in all but their page."""
    members = defaultdict(list)
    for q, query in enumerate(queries):
        asked = query.ranking
        is_text = query.text is not None
        members[(asked.candidates, asked.rerank, asked.normalise, query.filter, tuple(own[q]), is_text)].append(q)
    for (candidates, rerank, how, wanted, left_out, _), group in members.items():
        yield (Ranking(k=1, candidates=candidates, rerank=rerank, normalise=how), wanted, left_out), group


def _confident(hits: tuple[Hit, ...], least: float) -> tuple[Hit, ...]:
    """Without hits that fit less well; those with words of the query are kept."""
    if least == 0:
        return hits
    return tuple(hit for hit in hits if hit.snippet or (hit.confidence is not None and hit.confidence >= least))


def _nothing_fits(hits: tuple[Hit, ...]) -> bool:
    """Whether there are hits whose confidence is known, none of which reaches the line, and none with words."""
    if any(hit.snippet for hit in hits):
        return False
    known = [hit.confidence for hit in hits if hit.confidence is not None]
    return bool(known) and max(known) < LINE


def _wanted(asked: VideoFilter) -> Wanted:
    return Wanted(**vars(asked))


def _segments_of(generation: Generation, video_id: str, number: int | None) -> tuple[list[int], list[int]]:
    """All segment ids of a video, and those that the query means. Raises ``NotFound``."""
    segments = generation.video(video_id).segments
    meant = [segment.segment_id for segment in segments if number is None or segment.number == number]
    if not meant:
        raise NotFound(
            f"video {video_id} has {len(segments)} segments, none with number {number or 0}",
            expected=f"a segment from 0 to {len(segments) - 1}" if segments else "an indexed video",
            next_step=f"see the segments with GET /v1/videos/{video_id}",
        )
    return [segment.segment_id for segment in segments], meant


def _segment_id(generation: Generation, named: SegmentRef) -> int:
    return _segments_of(generation, named.video_id, named.segment)[1][0]


def limit_threads(settings: Settings) -> None:
    """Set how many threads one batch may use. FAISS's limit holds for the calling thread only: call it there."""
    import torch

    from indexer.ann.index import set_threads

    torch.set_num_threads(settings.threads)
    set_threads(settings.faiss_threads)


def serving_of(settings: Settings) -> Serving:
    """How the settings want the indexes held: mapped or in memory, on which device."""
    from indexer.store.reader import Serving

    return Serving(mmap=settings.index_mmap, device=settings.faiss_device)


def reader_opener(settings: Settings, encoder: Encoder) -> Callable[[], Library]:
    """What opens the newest view of the store: over FAISS, or over the engine that the settings name.

    Raises ``EngineError`` where there is no such engine.
    """
    from indexer.store.reader import StoreReader

    if settings.engine is not None:
        from indexer.engine.milvus import MilvusEngine
        from indexer.engine.reader import EngineReader

        engine = MilvusEngine(settings.engine, timeout_seconds=settings.engine_timeout_seconds)
        return lambda: EngineReader.connected(
            settings.store,
            engine,
            fingerprint=encoder.fingerprint,
            former_fingerprints=encoder.former_fingerprints,
        )
    serving = serving_of(settings)
    return lambda: StoreReader.open(
        settings.store,
        fingerprint=encoder.fingerprint,
        former_fingerprints=encoder.former_fingerprints,
        serving=serving,
    )


def build_engine(settings: Settings, say: Callable[[str], None] | None = None) -> Engine:
    """Open the store and load its model, or the model that the settings name. ``say``: see ``load_model``.

    Raises:
        ValueError: there is no store or no such model, or the two do not belong together.
    """
    return engine_with(settings, load_model(settings, say))


def load_model(settings: Settings, say: Callable[[str], None] | None = None) -> Encoder:
    """The model of the settings' store, or the one that they name. Raises as ``build_engine`` does.

    With ``say``, which gets lines for the terminal, the fastest runtime is measured unless that was done before.
    """
    from indexer.store.reader import StoreReader
    from model.encoder import load_encoder
    from model.export.fastest import NamedModel, at_first_use

    limit_threads(settings)
    with StoreReader.open(settings.store) as reader:
        spec = reader.manifest.model_spec
    of_store = settings.model is None
    name = spec.model if of_store else settings.model
    pretrained = settings.pretrained or spec.pretrained if of_store else settings.pretrained
    encoder = load_encoder(
        name,
        pretrained=pretrained,
        device=settings.device,
        precision=settings.precision,
        runtime=settings.runtime,
        exports=settings.exports,
    )
    if say is not None:
        encoder = at_first_use(
            NamedModel(model=name, pretrained=pretrained, exports=settings.exports),
            encoder,
            wish=settings.runtime,
            precision=settings.precision,
            say=say,
        )
    logger.info("model %s, fingerprint %s", encoder.config.name, encoder.fingerprint[:12])
    return encoder


def engine_with(settings: Settings, encoder: Encoder) -> Engine:
    """Open the store, with its model. Raises as ``build_engine`` does."""
    return Engine(
        encoder,
        reader_opener(settings, encoder),
        limits=QueryLimits.from_settings(settings, default_candidates=encoder.config.search.candidates),
        cache_entries=settings.cache_entries,
        fusion=FusionWeights.from_settings(settings),
    )
