"""Questions to the engine and its answers: plain values, checked against the service's limits. A leaf.

Seconds count from a video's first frame. Scores are cosines in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.evaluate.labels import (
    DEFAULT_PROMPT,
    MAX_ANSWERS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_QUESTION_CHARS,
    check_labels,
    check_question,
)
from service.errors import Unprocessable
from service.settings import Settings

Rerank = Literal["emcl", "none", "frozen"]
"""``emcl``: text-conditioned pooling and the EM pass over the query's candidates. ``none``: the same pooling without
the pass (its strength set to 0). ``frozen``: stage 1 alone, the order in which the index returned the candidates."""

Normalise = Literal["none", "qb-norm"]
"""``qb-norm``: scores are compared with those of the index's query bank, so that segments that are near to every query
do not come first for all of them. ``none``: scores as they are."""

Group = Literal["video", "moment", "segment"]
"""``video``: only the best segment of each video is a hit. ``moment``: segments of one video that look alike are one
hit. ``segment``: every segment may be one."""


Fusion = Literal["auto", "visual", "text"]
"""``auto``: the visual ranking, fused with that of the words in titles, file names, tags and captions where enough of
the query's words are found there. ``visual``: the pictures alone. ``text``: the words alone, without the model."""


@dataclass(frozen=True, kw_only=True)
class VideoFilter:
    """Which videos may be hits; each field as in ``indexer.library.Wanted``."""

    tags: tuple[str, ...] = ()
    min_seconds: float | None = None
    max_seconds: float | None = None
    recorded_from: float | None = None
    recorded_until: float | None = None
    folder: str | None = None
    camera: str | None = None
    min_height: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How candidates are found and ranked, and which page of them is wanted.

    ``min_confidence`` leaves out hits of the page, which then has fewer than ``k``.
    ``candidates`` of ``None`` is the number that the checkpoint was calibrated to (``QueryLimits.candidates_of``).
    """

    k: int = 10
    offset: int = 0
    candidates: int | None = None
    rerank: Rerank = "emcl"
    group: Group = "video"
    normalise: Normalise = "none"
    min_confidence: float = 0.0
    fusion: Fusion = "visual"


@dataclass(frozen=True, kw_only=True)
class SearchQuery:
    """Videos for a text, or videos like an indexed one: all its segments, or ``segment`` alone. One is given."""

    text: str | None = None
    video_id: str | None = None
    segment: int | None = None
    ranking: Ranking = field(default_factory=Ranking)
    filter: VideoFilter = field(default_factory=VideoFilter)


@dataclass(frozen=True, kw_only=True, eq=False)
class UploadQuery:
    """Captions and similar videos for frames (F, S, S, 3) uint8 with their timestamps (F,) in seconds."""

    frames_FHWC: NDArray[np.uint8]
    timestamps_seconds: NDArray[np.float64]
    ranking: Ranking = field(default_factory=Ranking)


@dataclass(frozen=True, kw_only=True)
class SegmentRef:
    """A segment as a client names it."""

    video_id: str
    segment: int = 0


@dataclass(frozen=True, kw_only=True)
class RerankQuery:
    """Given segments, scored for a text."""

    text: str
    segments: tuple[SegmentRef, ...]
    rerank: Literal["emcl", "none"] = "emcl"


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifyQuery:
    """Labels for an indexed video (all of it, or ``segment`` alone) or for uploaded frames (F, H, W, 3) uint8."""

    labels: tuple[str, ...]
    prompt: str = DEFAULT_PROMPT
    video_id: str | None = None
    segment: int | None = None
    frames_FHWC: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionQuery:
    """What to write a caption for: an indexed video (or ``segment`` alone), or uploaded frames (F, H, W, 3) uint8."""

    video_id: str | None = None
    segment: int | None = None
    frames_FHWC: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerQuery:
    """A question about an indexed video (or ``segment`` alone), or about uploaded frames (F, H, W, 3) uint8."""

    question: str
    top: int = 5
    video_id: str | None = None
    segment: int | None = None
    frames_FHWC: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class FrameWeights:
    """How much the query weighs each frame. ``weights`` sum to 1; the moment is the time of the largest."""

    seconds: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def moment_seconds(self) -> float:
        """The time of the frame that weighs most; the earliest of equals."""
        return self.seconds[self.weights.index(max(self.weights))]

    @classmethod
    def of(cls, timestamps_F: NDArray[np.float64], weights_F: NDArray[np.float32]) -> FrameWeights:
        """From the timestamps of the F real frames and weights of at least as many, padding behind."""
        return cls(seconds=tuple(timestamps_F.tolist()), weights=tuple(weights_F[: len(timestamps_F)].tolist()))


@dataclass(frozen=True, kw_only=True)
class MomentHit:
    """A segment of a video that matches, with the score that it has as a candidate."""

    start_seconds: float
    end_seconds: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A segment that matches. ``score`` is the one it is ranked by, ``stage1_score`` that of the index.

    ``path`` is where its file was found: shown to those alone who may know.
    ``confidence``: how unusual the match is (``indexer.store.confidence``); None where that is not known.
    ``matched`` says why it is a hit: ``visual``, and the kinds of its texts that have words of the query. ``snippet``
    is the best of these in parts, True for such words. Fused hits are not in the order of ``score``; of words alone,
    it is the share of the query's words. ``passage`` is the start and end in seconds of what is said, where
    a transcript fits best. ``moments`` are the candidates of its video that it stands for, at most the best
    ``service.search.hits.MOST_MOMENTS``, in order of time, its own segment among them; empty if every segment may be a
    hit, and for words alone.
    """

    video_id: str
    segment_id: int
    segment: int
    start_seconds: float
    end_seconds: float
    score: float
    stage1_score: float
    frames: FrameWeights
    title: str
    duration_seconds: float
    tags: tuple[str, ...]
    path: str | None = None
    confidence: float | None = None
    matched: tuple[str, ...] = ("visual",)
    snippet: tuple[tuple[str, bool], ...] = ()
    passage: tuple[float, float] | None = None
    moments: tuple[MomentHit, ...] = ()

    @property
    def moment_seconds(self) -> float:
        """The start of the passage, else the time of the frame that the query weighs most."""
        return self.frames.moment_seconds if self.passage is None else self.passage[0]


@dataclass(frozen=True, kw_only=True)
class CaptionHit:
    """A caption that matches an upload; ``frames`` are those of the upload."""

    caption_id: int
    text: str
    video_id: str | None
    score: float
    stage1_score: float
    frames: FrameWeights


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an answer was computed with, and how long each stage of its batch took.

    ``version`` names all that the index could answer then: the generation and what was changed in it since. ``emcl``
    and ``strength`` are those of the correction that the hits were ranked with (``model.emcl.active``).
    """

    generation: str
    version: str
    fingerprint: str
    stage_seconds: dict[str, float]
    emcl: str = "off"
    strength: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The hits of one query, best first.

    ``truncated``: the model read only the beginning of the text. ``unknown_script``: a script of the text that it does
    not read, None if it reads all. ``nothing_fits``: there were hits, and all of them were weak.
    """

    hits: tuple[Hit, ...]
    source: Source
    truncated: bool = False
    unknown_script: str | None = None
    nothing_fits: bool = False


@dataclass(frozen=True, kw_only=True)
class UploadResult:
    """The captions and the similar videos of one upload, best first."""

    captions: tuple[CaptionHit, ...]
    hits: tuple[Hit, ...]
    source: Source


@dataclass(frozen=True, kw_only=True)
class LabelHit:
    """A label with its cosine, and its probability among the labels of the query."""

    label: str
    score: float
    probability: float


@dataclass(frozen=True, kw_only=True)
class ClassifyResult:
    """All labels of a query, best first."""

    labels: tuple[LabelHit, ...]
    source: Source


@dataclass(frozen=True, kw_only=True)
class CaptionResult:
    """A written caption and the mean log-probability of its words."""

    text: str
    score: float
    source: Source


@dataclass(frozen=True, kw_only=True)
class AnswerHit:
    """An answer; ``probability`` is that among the model's answers."""

    text: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class AnswerResult:
    """Answers, best first. ``truncated``: the model read only the beginning of the question."""

    answers: tuple[AnswerHit, ...]
    truncated: bool
    source: Source


@dataclass(frozen=True, kw_only=True)
class QueryLimits:
    """Limits of one query; ``check_`` methods raise ``Unprocessable`` that names the limit."""

    max_texts: int
    max_text_chars: int
    max_candidates: int
    default_candidates: int = 100

    @classmethod
    def from_settings(cls, settings: Settings, *, default_candidates: int = 100) -> QueryLimits:
        """The limits in the settings; ``default_candidates`` is the checkpoint's number, capped by the settings."""
        return cls(
            max_texts=settings.max_texts,
            max_text_chars=settings.max_text_chars,
            max_candidates=settings.max_candidates,
            default_candidates=min(default_candidates, settings.max_candidates),
        )

    def candidates_of(self, ranking: Ranking) -> int:
        """How many candidates of stage 1 are reranked: the query's number, else the checkpoint's."""
        return self.default_candidates if ranking.candidates is None else ranking.candidates

    def check_texts(self, texts: tuple[str, ...]) -> None:
        """At most ``max_texts`` texts, each with something to read and at most ``max_text_chars`` characters."""
        if not 1 <= len(texts) <= self.max_texts:
            raise _over(f"{len(texts)} texts", f"1 to {self.max_texts} texts", "split the request")
        for text in texts:
            if not text.strip():
                raise _over("an empty text", "words", "say what to look for")
            if len(text) > self.max_text_chars:
                raise _over(f"{len(text)} characters", f"at most {self.max_text_chars}", "shorten the text")
            _check_unicode(text)

    def check_ranking(self, ranking: Ranking) -> None:
        """``1 <= offset + k <= candidates <= max_candidates``."""
        candidates = self.candidates_of(ranking)
        if not 1 <= candidates <= self.max_candidates:
            raise _over(f"candidates={candidates}", f"1 to {self.max_candidates}", "ask for fewer candidates")
        if not 0 <= ranking.min_confidence <= 1:
            raise _over(f"min_confidence={ranking.min_confidence}", "0 to 1", "correct it")
        if ranking.k < 1:
            raise _over(f"k={ranking.k}", "at least 1", "ask for at least one result")
        if ranking.offset < 0:
            raise _over(f"offset={ranking.offset}", "at least 0", "begin at 0, with the first result")
        if ranking.offset + ranking.k > candidates:
            raise _over(
                f"offset={ranking.offset} and k={ranking.k}",
                f"k of at least 1 and offset + k of at most candidates={candidates}",
                "raise candidates, or ask for fewer results",
            )

    def check_filter(self, wanted: VideoFilter) -> None:
        """Texts that are texts, an absolute folder, and finite, ordered bounds of duration and recording."""
        for text in (*wanted.tags, wanted.folder or "", wanted.camera or ""):
            _check_unicode(text)
        if wanted.folder is not None and not wanted.folder.startswith("/"):
            raise _over(f"the folder {wanted.folder!r}", "an absolute path", "begin it with /")
        since, until = wanted.recorded_from, wanted.recorded_until
        if since is not None and until is not None and since >= until:
            raise _over(
                "a time of recording that ends before it begins", "recorded_after <= recorded_before", "swap them"
            )
        if wanted.min_height is not None and wanted.min_height < 1:
            raise _over(f"a height of {wanted.min_height}", "at least 1 pixel", "name the shorter side, such as 1080")
        low, high = wanted.min_seconds, wanted.max_seconds
        bounds = [bound for bound in (low, high) if bound is not None]
        if any(not math.isfinite(bound) or bound < 0 for bound in bounds) or bounds != sorted(bounds):
            raise _over(f"a duration from {low} to {high}", "0 <= min_seconds <= max_seconds", "correct the bounds")

    def check_search(self, query: SearchQuery) -> None:
        """All of the above for one search."""
        if (query.text is None) == (query.video_id is None):
            raise _over("a query with neither or both of text and video_id", "exactly one", "give a text or a video_id")
        if query.text is not None:
            self.check_texts((query.text,))
        elif query.ranking.fusion == "text":
            raise _over(
                "fusion text for a video_id", "it with a text", "leave it out: a video has no words to look for"
            )
        elif query.ranking.normalise != "none":
            raise _over("normalise for a video_id", "it with a text", "leave it out: the query bank holds texts")
        elif query.ranking.min_confidence > 0:
            raise _over("min_confidence for a video_id", "it with a text", "leave it out: confidence is of texts")
        self.check_ranking(query.ranking)
        self.check_filter(query.filter)

    def check_labels(self, labels: tuple[str, ...], prompt: str) -> None:
        """1 to 1,000 different labels of at most 200 characters, and a prompt with one {}."""
        try:
            check_labels(labels, prompt)
        except ValueError as error:
            raise Unprocessable(
                str(error),
                expected=f"1 to {MAX_LABELS} different labels of {MAX_LABEL_CHARS} characters, one {{}} in the prompt",
                next_step="correct the labels or the prompt",
            ) from error
        for text in (*labels, prompt):
            _check_unicode(text)

    def check_question(self, question: str, top: int) -> None:
        """A question of 1 to 500 characters, and 1 to 100 answers."""
        try:
            check_question(question)
        except ValueError as error:
            expected = f"a question of 1 to {MAX_QUESTION_CHARS} characters"
            raise Unprocessable(str(error), expected=expected, next_step="correct the question") from error
        _check_unicode(question)
        if not 1 <= top <= MAX_ANSWERS:
            raise _over(f"top {top}", f"1 to {MAX_ANSWERS}", "ask for fewer answers")

    def check_rerank(self, query: RerankQuery) -> None:
        """A text and 1 to ``max_candidates`` different segments."""
        self.check_texts((query.text,))
        if not 1 <= len(query.segments) <= self.max_candidates:
            raise _over(f"{len(query.segments)} segments", f"1 to {self.max_candidates}", "name fewer segments")
        if len(set(query.segments)) < len(query.segments):
            raise _over("a segment named twice", "each segment once", "name each segment once")


def _check_unicode(text: str) -> None:
    """JSON can write half of a surrogate pair, which is not a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _over("half a surrogate pair", "Unicode text", "correct the text") from error


def _over(got: str, expected: str, next_step: str) -> Unprocessable:
    return Unprocessable(f"got {got}", expected=expected, next_step=next_step)
