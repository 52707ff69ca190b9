"""The JSON of requests and answers. Unknown fields are errors.

Times are seconds from the video's first frame. Limits that depend on settings are checked by
``service.search.values.QueryLimits``, so that the command line has them too.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from indexer.store.confidence import LINE
from model.evaluate.labels import DEFAULT_PROMPT, MAX_ANSWERS, MAX_LABEL_CHARS, MAX_LABELS, MAX_QUESTION_CHARS
from service.search.playlists import ListFormat
from service.search.values import (
    AnswerQuery,
    AnswerResult,
    CaptionHit,
    CaptionQuery,
    CaptionResult,
    ClassifyQuery,
    ClassifyResult,
    FrameWeights,
    Fusion,
    Group,
    Hit,
    Normalise,
    Ranking,
    Rerank,
    RerankQuery,
    SearchQuery,
    SearchResult,
    SegmentRef,
    Source,
    UploadResult,
    VideoFilter,
)

VIDEO_ID = r"^[0-9a-f]{64}$"


class Request(BaseModel):
    """Base of request bodies: unknown fields fail, numbers are not made of text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def time_of(text: str, *, is_end: bool = False) -> float:
    """Unix seconds of an ISO 8601 date, or date and time; UTC where no zone is named. ``is_end``: the end of a date.

    Raises ``ValueError``.
    """
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        if is_end:
            found += timedelta(days=1) if len(text) <= len("2024-05-01") else timedelta(microseconds=1)
        return found.timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is not a date; expected 2024-05-01, or 2024-05-01T18:30:00+02:00") from None


class FilterIn(Request):
    """Only videos for which all of this holds."""

    tags: list[str] = Field(default=[], max_length=64, description="Tags that a video must all have.")
    min_seconds: float | None = Field(None, description="Shortest duration of a video, inclusive.")
    max_seconds: float | None = Field(None, description="Longest duration of a video, inclusive.")
    recorded_after: str | None = Field(
        None,
        max_length=40,
        description="Recorded at this time or later: a date, or date and time (ISO 8601; else UTC).",
    )
    recorded_before: str | None = Field(
        None, max_length=40, description="Recorded at this time or earlier; a date counts to its end."
    )
    folder: str | None = Field(
        None, max_length=4096, description="A file of the video is in this folder or below. For keys that see paths."
    )
    camera: str | None = Field(None, max_length=100, description="Part of the camera's make and model, in any case.")
    min_height: int | None = Field(None, description="Pixels of the shorter side, at least: 720, 1080, 2160.")

    @field_validator("recorded_after", "recorded_before")
    @classmethod
    def _is_a_time(cls, text: str | None) -> str | None:
        if text is not None:
            time_of(text, is_end=True)
        return text

    def to_filter(self) -> VideoFilter:
        """The engine's value."""
        return VideoFilter(
            tags=tuple(self.tags),
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            recorded_from=None if self.recorded_after is None else time_of(self.recorded_after),
            recorded_until=None if self.recorded_before is None else time_of(self.recorded_before, is_end=True),
            folder=self.folder,
            camera=self.camera or None,
            min_height=self.min_height,
        )


class SearchRequest(Request):
    """Exactly one of ``text``, ``texts`` and ``video_id``."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "on a plain brown background, a little blue ring shrinks", "k": 5}]}
    )

    text: str | None = Field(None, description="What to look for.")
    texts: list[str] | None = Field(None, description="Several queries at once; the answer then holds `results`.")
    video_id: str | None = Field(None, pattern=VIDEO_ID, description="Videos like this one, without the video itself.")
    segment: int | None = Field(None, ge=0, description="With `video_id`: like this segment of it, not all of them.")
    k: int = Field(10, description="Most hits.")
    offset: int = Field(0, description="Hits to leave out before the first.")
    candidates: int | None = Field(
        None, description="Segments from stage 1 to rerank. Default: the checkpoint's, usually 100."
    )
    rerank: Rerank = Field("emcl", description="`emcl`, `none` (pooling without EMCL) or `frozen` (stage 1 alone).")
    group: Group = Field(
        "video",
        description="`video`: the best segment of each video; `moment`: segments of one video that look alike "
        "are one hit; `segment`: every segment.",
    )
    normalise: Normalise = Field(
        "none",
        description="`qb-norm`: scores relative to the index's query bank (texts only; 409 if it has none). Where the "
        "best candidate is near to many texts, `score` is how much nearer it is to this one.",
    )
    min_confidence: float = Field(
        0.0, description="Leave out hits of the page that fit less well, from 0 to 1 (texts only)."
    )
    fusion: Fusion = Field(
        "auto",
        description="`auto`: fused with a search for the words in titles, file names, tags and captions where enough "
        "of them are found, else the visual ranking; `visual`: that alone; `text`: the words alone, without the model.",
    )
    filter: FilterIn = Field(default_factory=FilterIn)  # a default value would be copied deeply for each request

    def to_queries(self) -> list[SearchQuery]:
        """One query for each text, or for the video; a request with none of them, or several, gives one that fails."""
        ranking = Ranking(
            k=self.k,
            offset=self.offset,
            candidates=self.candidates,
            rerank=self.rerank,
            group=self.group,
            normalise=self.normalise,
            min_confidence=self.min_confidence,
            fusion="visual" if self.video_id is not None and self.fusion == "auto" else self.fusion,
        )
        wanted = self.filter.to_filter()
        texts = self.texts if self.texts is not None else [self.text]
        return [
            SearchQuery(text=text, video_id=self.video_id, segment=self.segment, ranking=ranking, filter=wanted)
            for text in texts
        ]


class ExportRequest(SearchRequest):
    """A search whose hits are wanted as a file."""

    format: ListFormat = Field(description="`m3u`, `edl` or `html`.")
    frame_rate: int = Field(25, ge=1, le=240, description="Frames per second that timecodes of `edl` count.")


class FrameOut(Answer):
    """One frame of a segment, and how much the query weighs it; the weights of a segment sum to 1."""

    time: float
    weight: float

    @classmethod
    def all_of(cls, frames: FrameWeights) -> list[FrameOut]:
        """Each frame in order of time."""
        return [cls(time=time, weight=weight) for time, weight in zip(frames.seconds, frames.weights, strict=True)]


class SnippetPart(Answer):
    """A part of a text; `match` says whether it is a word that was looked for."""

    text: str
    match: bool


class Passage(Answer):
    """A part of a video in which something is said, in seconds."""

    start: float
    end: float


class MomentOut(Answer):
    """A segment of the hit's video that matches too, in seconds."""

    start: float
    end: float
    score: float


class HitOut(Answer):
    """A segment of a video that matches."""

    video_id: str = Field(description="SHA-256 of the video's bytes.")
    segment: int = Field(description="Number of the segment in its video, from 0.")
    start: float = Field(description="Start of the segment in the video.")
    end: float = Field(description="End of the segment in the video.")
    score: float = Field(
        description="Cosine that the hits are ranked by, with `qb-norm` less what is usual for it; where words matched "
        "too, the order is that of both. With `fusion: text`: the share of the query's words, 0 to 1."
    )
    stage1_score: float = Field(description="Cosine of stage 1, before reranking.")
    confidence: float | None = Field(
        None,
        description="How unusual the match is: the share of unrelated texts whose best match in this library fits less "
        "well, from 0 to 1. Null for likeness to a video, and in an index of an earlier version.",
    )
    moment: float = Field(description="Time of the frame that the query weighs most; with a `passage`, its start.")
    frame_weights: list[FrameOut]
    title: str = Field(description="Name of the video's file without its ending.")
    duration_seconds: float = Field(description="Duration of the whole video.")
    tags: list[str]
    matched: list[str] = Field(
        ["visual"],
        description="Why it is a hit: `visual`, and the texts with words of the query: `title`, `name`, "
        "`tag`, `caption`, `transcript`.",
    )
    snippet: list[SnippetPart] = Field([], description="The text that fits best, in parts; empty without words.")
    passage: Passage | None = Field(None, description="Start and end of what is said, where a transcript fits best.")
    moments: list[MomentOut] = Field(
        [],
        description="What the hit stands for: candidates of its video, its own segment among them, in order of time; "
        "at most the best 20. Empty with `group: segment` and with `fusion: text`.",
    )
    path: str | None = Field(
        None,
        description="Where the service finds the video's file. Only for keys of scope `admin`, and where no keys are "
        "required; otherwise null.",
    )
    thumbnail_url: str = Field(description="A picture of the moment.")
    stream_url: str = Field(description="The whole video; add `#t=MOMENT` to start there.")

    @classmethod
    def of(cls, hit: Hit, *, with_path: bool = False) -> HitOut:
        """The JSON of a hit."""
        moment = hit.moment_seconds
        return cls(
            video_id=hit.video_id,
            segment=hit.segment,
            start=hit.start_seconds,
            end=hit.end_seconds,
            score=hit.score,
            stage1_score=hit.stage1_score,
            confidence=hit.confidence,
            moment=moment,
            frame_weights=FrameOut.all_of(hit.frames),
            title=hit.title,
            duration_seconds=hit.duration_seconds,
            tags=list(hit.tags),
            matched=list(hit.matched),
            snippet=[SnippetPart(text=text, match=match) for text, match in hit.snippet],
            passage=None if hit.passage is None else Passage(start=hit.passage[0], end=hit.passage[1]),
            moments=[MomentOut(start=one.start_seconds, end=one.end_seconds, score=one.score) for one in hit.moments],
            path=hit.path if with_path else None,
            thumbnail_url=thumbnail_url(hit.video_id, moment),
            stream_url=stream_url(hit.video_id),
        )


class SourceOut(Answer):
    """What computed an answer."""

    generation: str = Field(description="The generation of the index.")
    fingerprint: str = Field(description="The model's content hash.")
    stage_ms: dict[str, float] = Field(description="Milliseconds of each stage, for the whole batch.")
    emcl: str = Field("off", description="Mode of EMCL that the hits were ranked with; `off` if it changed nothing.")
    strength: float = Field(0.0, description="Strength of that correction; 0 if it is off.")

    @classmethod
    def of(cls, source: Source) -> SourceOut:
        """The JSON of a source."""
        return cls(
            generation=source.generation,
            fingerprint=source.fingerprint,
            stage_ms=stage_ms(source),
            emcl=source.emcl,
            strength=source.strength,
        )


class SearchAnswer(Answer):
    """The hits of one query, best first."""

    hits: list[HitOut]
    source: SourceOut
    truncated: bool = Field(False, description="The text is longer than the model reads; its end was ignored.")
    unknown_script: str | None = Field(
        None, description="A script in the text that the model's tokenizer does not know, such as `Cyrillic`."
    )
    nothing_fits: bool = Field(
        False, description=f"Nothing fits well: no hit of the page has a confidence of {LINE} or more."
    )

    @classmethod
    def of(cls, result: SearchResult, *, with_paths: bool = False) -> SearchAnswer:
        """The JSON of a result."""
        return cls(
            hits=[HitOut.of(hit, with_path=with_paths) for hit in result.hits],
            source=SourceOut.of(result.source),
            truncated=result.truncated,
            unknown_script=result.unknown_script,
            nothing_fits=result.nothing_fits,
        )


class ManyAnswers(Answer):
    """One answer for each of ``texts``, in their order."""

    results: list[SearchAnswer]


class CaptionOut(Answer):
    """A caption that matches an uploaded video."""

    caption_id: int
    text: str
    video_id: str | None = Field(description="The indexed video that the caption belongs to, if any.")
    score: float = Field(description="Cosine that the captions are ranked by.")
    stage1_score: float = Field(description="Cosine of stage 1, before reranking.")
    moment: float = Field(description="Time in the upload of the frame that the caption weighs most.")
    frame_weights: list[FrameOut]

    @classmethod
    def of(cls, hit: CaptionHit) -> CaptionOut:
        """The JSON of a caption."""
        return cls(
            caption_id=hit.caption_id,
            text=hit.text,
            video_id=hit.video_id,
            score=hit.score,
            stage1_score=hit.stage1_score,
            moment=hit.frames.moment_seconds,
            frame_weights=FrameOut.all_of(hit.frames),
        )


class UploadOut(Answer):
    """What was decoded of an upload."""

    duration_seconds: float
    frames: int


class UploadAnswer(Answer):
    """Captions that match an uploaded video, and indexed videos like it, best first."""

    captions: list[CaptionOut]
    hits: list[HitOut]
    upload: UploadOut
    source: SourceOut

    @classmethod
    def of(cls, result: UploadResult, upload: UploadOut, *, with_paths: bool = False) -> UploadAnswer:
        """The JSON of a result."""
        return cls(
            captions=[CaptionOut.of(caption) for caption in result.captions],
            hits=[HitOut.of(hit, with_path=with_paths) for hit in result.hits],
            upload=upload,
            source=SourceOut.of(result.source),
        )


class SegmentIn(Request):
    """A segment to score."""

    video_id: str = Field(pattern=VIDEO_ID)
    segment: int = Field(0, ge=0)


class RerankRequest(Request):
    """Segments to score for a text: stage 2 on its own."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "text": "on a plain brown background, a little blue ring shrinks",
                    "segments": [{"video_id": "0" * 64, "segment": 0}],
                }
            ]
        }
    )

    text: str
    segments: list[SegmentIn]
    rerank: Literal["emcl", "none"] = Field("emcl", description="`emcl`, or `none` (pooling without EMCL).")

    def to_query(self) -> RerankQuery:
        """The engine's value."""
        return RerankQuery(
            text=self.text,
            segments=tuple(SegmentRef(video_id=named.video_id, segment=named.segment) for named in self.segments),
            rerank=self.rerank,
        )


class ClassifyRequest(Request):
    """An indexed video and the labels that it may have."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"video_id": "0" * 64, "labels": ["a ring", "a star"], "prompt": "a video of {}"}]
        }
    )

    video_id: str = Field(pattern=VIDEO_ID)
    segment: int | None = Field(None, ge=0, description="This segment alone. Default: the whole video.")
    labels: list[str] = Field(
        min_length=1, max_length=MAX_LABELS, description=f"Different labels, each of 1 to {MAX_LABEL_CHARS} characters."
    )
    prompt: str = Field(DEFAULT_PROMPT, description="The text that each label is put into, in the place of `{}`.")

    def to_query(self) -> ClassifyQuery:
        """The engine's value."""
        return ClassifyQuery(
            labels=tuple(self.labels), prompt=self.prompt, video_id=self.video_id, segment=self.segment
        )


class LabelOut(Answer):
    """A label and how well it fits."""

    label: str
    probability: float = Field(description="Among the labels that were given, at the model's own scale; they sum to 1.")
    score: float = Field(description="Cosine of the video and the prompt.")


class ClassifyAnswer(Answer):
    """All labels, best first. `upload` says what was decoded; null for an indexed video."""

    labels: list[LabelOut]
    upload: UploadOut | None
    source: SourceOut

    @classmethod
    def of(cls, result: ClassifyResult, upload: UploadOut | None = None) -> ClassifyAnswer:
        """The JSON of a result."""
        labels = [LabelOut(label=hit.label, probability=hit.probability, score=hit.score) for hit in result.labels]
        return cls(labels=labels, upload=upload, source=SourceOut.of(result.source))


class CaptionRequest(Request):
    """An indexed video to write a caption for."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"video_id": "0" * 64}]})

    video_id: str = Field(pattern=VIDEO_ID)
    segment: int | None = Field(None, ge=0, description="This segment alone. Default: the whole video.")

    def to_query(self) -> CaptionQuery:
        """The engine's value."""
        return CaptionQuery(video_id=self.video_id, segment=self.segment)


class WrittenCaptionAnswer(Answer):
    """A caption that the model wrote. `upload` says what was decoded; null for an indexed video."""

    caption: str
    score: float = Field(description="Mean log-probability of its words, at most 0.")
    upload: UploadOut | None
    source: SourceOut

    @classmethod
    def of(cls, result: CaptionResult, upload: UploadOut | None = None) -> WrittenCaptionAnswer:
        """The JSON of a result."""
        return cls(caption=result.text, score=result.score, upload=upload, source=SourceOut.of(result.source))


class AnswerRequest(Request):
    """A question about an indexed video."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"video_id": "0" * 64, "question": "what color is the circle?"}]}
    )

    video_id: str = Field(pattern=VIDEO_ID)
    segment: int | None = Field(None, ge=0, description="This segment alone. Default: the whole video.")
    question: str = Field(min_length=1, max_length=MAX_QUESTION_CHARS)
    top: int = Field(5, ge=1, le=MAX_ANSWERS, description="Answers to return; the model may have fewer.")

    def to_query(self) -> AnswerQuery:
        """The engine's value."""
        return AnswerQuery(question=self.question, top=self.top, video_id=self.video_id, segment=self.segment)


class AnswerOut(Answer):
    """An answer of the model's list."""

    answer: str
    probability: float = Field(description="Among all answers that the model has; they sum to 1.")


class QuestionAnswer(Answer):
    """Answers to a question, best first. `upload` says what was decoded; null for an indexed video."""

    answers: list[AnswerOut]
    truncated: bool = Field(description="The question is longer than the model reads; its end was ignored.")
    upload: UploadOut | None
    source: SourceOut

    @classmethod
    def of(cls, result: AnswerResult, upload: UploadOut | None = None) -> QuestionAnswer:
        """The JSON of a result."""
        answers = [AnswerOut(answer=hit.text, probability=hit.probability) for hit in result.answers]
        return cls(answers=answers, truncated=result.truncated, upload=upload, source=SourceOut.of(result.source))


class EmbeddingsRequest(Request):
    """Texts to embed: stage 1's query vectors on their own."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["on a plain brown background, a little blue ring shrinks"]}]}
    )

    texts: list[str]


class EmbeddingsAnswer(Answer):
    """One unit vector for each text, comparable by inner product with what the index holds."""

    embeddings: list[list[float]]
    dim: int
    source: SourceOut


class Problem(Answer):
    """Problem details (RFC 9457), the body of every error."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What was wrong.")
    expected: str = Field(description="What would have been right.")
    next_step: str = Field(description="What to do now.")
    errors: list[dict[str, str]] | None = Field(None, description="Each wrong field, for validation errors.")
    incident: str | None = Field(None, description="For faults of the service: an id to find the cause in the log.")
    request_id: str | None = Field(None, description="Of this request, as in the header and the log.")


def stage_ms(source: Source) -> dict[str, float]:
    """Milliseconds by stage, to the microsecond."""
    return {stage: round(seconds * 1000, 3) for stage, seconds in source.stage_seconds.items()}


def clip_url(video_id: str, start_seconds: float, end_seconds: float) -> str:
    """The path of a part of a video as a file."""
    return f"/v1/videos/{video_id}/clip?from={start_seconds:.3f}&to={end_seconds:.3f}"


def thumbnail_url(video_id: str, moment_seconds: float | None = None) -> str:
    """The path of a video's thumbnail, of a moment if one is given."""
    return f"/v1/videos/{video_id}/thumbnail" + ("" if moment_seconds is None else f"?t={moment_seconds:.3f}")


def stream_url(video_id: str) -> str:
    """The path of a video's bytes."""
    return f"/v1/videos/{video_id}/stream"
