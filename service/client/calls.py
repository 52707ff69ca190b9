"""The routes of the service as typed calls: what to send, and what the answer is. Nothing here sends anything.

Each function builds the request of one route; ``service.client.client`` has them as methods.

How a route of the service becomes a typed method of both clients. Nothing here sends anything.

An ``Endpoint`` is one route. As an attribute of ``service.client.client.Client`` it is a method that returns the
answer, of ``AsyncClient`` one that is awaited; both share all that is written in ``service.client.calls``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

import httpx
from pydantic import BaseModel

from service.schemas.index import IndexAnswer, LiveAnswer, ReadyAnswer, SessionAnswer
from service.schemas.jobs import JobMetrics, JobOut, JobsPage
from service.schemas.library import CaptionsAdded, CaptionsPage, TranscriptPut, VideoAdded, VideoOut, VideosPage
from service.schemas.search import (
    ClassifyAnswer,
    EmbeddingsAnswer,
    ManyAnswers,
    QuestionAnswer,
    SearchAnswer,
    UploadAnswer,
    WrittenCaptionAnswer,
)
from service.search.playlists import ListFormat
from service.search.values import Fusion, Group, Rerank

P = ParamSpec("P")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What goes with a request. ``file`` is uploaded as the form's part ``file``; ``form`` are its other parts.

    ``body`` is sent as it is.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    body: bytes | None = None
    file: Path | None = None
    form: Mapping[str, str | list[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    sent: Sent
    read: Callable[[httpx.Response], T]


class Runs(Protocol):
    """A client that sends calls and returns their answers."""

    def run(self, call: Call[T]) -> T:
        """Send a call."""
        ...


class RunsLater(Protocol):
    """A client whose answers are awaited."""

    async def run_later(self, call: Call[T]) -> T:
        """Send a call."""
        ...


class Endpoint(Generic[P, T]):
    """A route with a typed builder of its requests; a method of the clients that it is an attribute of."""

    def __init__(
        self,
        method: str,
        route: str,
        read: Callable[[httpx.Response], T],
        build: Callable[P, Sent],
        summary: str | None = None,
    ) -> None:
        self.method = method
        self.route = route
        self._read = read
        self._build = build
        self.__doc__ = summary or build.__doc__

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """The request for these arguments."""
        sent = self._build(*args, **kwargs)
        return Call(method=self.method, path=self.route.format(**sent.path), sent=sent, read=self._read)

    @overload
    def __get__(self, client: None, owner: type) -> Endpoint[P, T]: ...
    @overload
    def __get__(self, client: Runs, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: RunsLater, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self
        run = client.run if hasattr(client, "run") else client.run_later
        return lambda *args, **kwargs: run(self.call(*args, **kwargs))


def endpoint(
    method: str, route: str, read: Callable[[httpx.Response], T]
) -> Callable[[Callable[P, Sent]], Endpoint[P, T]]:
    """Make an endpoint of the function that says what its requests hold."""
    return partial(Endpoint, method, route, read)


Model = TypeVar("Model", bound=BaseModel)


def _a(model: type[Model]) -> Callable[[httpx.Response], Model]:
    # Fields that a newer service adds are not errors for an older client.
    return lambda response: model.model_validate_json(response.content, extra="ignore")


def _content(response: httpx.Response) -> bytes:
    return response.content


def _text(response: httpx.Response) -> str:
    return response.text


def _nothing(response: httpx.Response) -> None:
    return None


def _given(**values: Any) -> dict[str, Any]:
    """What is not ``None``."""
    return {name: value for name, value in values.items() if value is not None}


def _filter(
    tags: Sequence[str], min_seconds: float | None, max_seconds: float | None, more: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {**_given(tags=list(tags), min_seconds=min_seconds, max_seconds=max_seconds), **(more or {})}


def _alone() -> Sent:
    return Sent()


def _of_video(video_id: str) -> Sent:
    return Sent(path={"video_id": video_id})


def _of_job(job_id: str) -> Sent:
    return Sent(path={"job_id": job_id})


def _searching(
    *,
    fusion: Fusion,
    tags: Sequence[str],
    min_seconds: float | None,
    max_seconds: float | None,
    filter: Mapping[str, Any] | None,
    **asked: Any,
) -> Sent:
    """What the routes of searches take; ``None`` is left out."""
    wanted = _filter(tags, min_seconds, max_seconds, filter)
    return Sent(json={**_given(**asked, fusion=_unless_default(fusion)), "filter": wanted})


def _unless_default(fusion: Fusion) -> Fusion | None:
    """Left out where it is the service's default, so that earlier services take the request."""
    return None if fusion == "auto" else fusion


# Searching.


@endpoint("POST", "/v1/search", _a(SearchAnswer))
def search(
    text: str | None = None,
    *,
    video_id: str | None = None,
    segment: int | None = None,
    k: int = 10,
    offset: int = 0,
    candidates: int | None = None,
    rerank: Rerank = "emcl",
    group: Group = "video",
    tags: Sequence[str] = (),
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    filter: Mapping[str, Any] | None = None,
    min_confidence: float | None = None,
    fusion: Fusion = "auto",
) -> Sent:
    """Videos for a text, or like an indexed video. ``fusion``: pictures and words, either alone, or both (`auto`).

    ``filter``: more conditions, as the API has them: ``recorded_after``, ``recorded_before``, ``folder``, ``camera``,
    ``min_height``.
    """
    return _searching(
        text=text,
        video_id=video_id,
        segment=segment,
        k=k,
        offset=offset,
        candidates=candidates,
        rerank=rerank,
        group=group,
        min_confidence=min_confidence,
        fusion=fusion,
        tags=tags,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        filter=filter,
    )


@endpoint("POST", "/v1/search", _a(ManyAnswers))
def search_many(
    texts: Sequence[str],
    *,
    k: int = 10,
    offset: int = 0,
    candidates: int | None = None,
    rerank: Rerank = "emcl",
    group: Group = "video",
    tags: Sequence[str] = (),
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    filter: Mapping[str, Any] | None = None,
    min_confidence: float | None = None,
    fusion: Fusion = "auto",
) -> Sent:
    """Videos for each of several texts."""
    return _searching(
        texts=list(texts),
        k=k,
        offset=offset,
        candidates=candidates,
        rerank=rerank,
        group=group,
        min_confidence=min_confidence,
        fusion=fusion,
        tags=tags,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        filter=filter,
    )


@endpoint("POST", "/v1/search/video", _a(UploadAnswer))
def search_video(
    path: Path | str,
    *,
    k: int = 10,
    offset: int = 0,
    candidates: int | None = None,
    rerank: Rerank = "emcl",
    group: Group = "video",
) -> Sent:
    """Captions and similar videos for a video file, of which nothing is kept."""
    query = _given(k=k, offset=offset, candidates=candidates, rerank=rerank, group=group)
    return Sent(file=Path(path), query=query)


@endpoint("POST", "/v1/classify", _a(ClassifyAnswer))
def classify(video_id: str, labels: Sequence[str], *, prompt: str | None = None, segment: int | None = None) -> Sent:
    """Which of some labels describe an indexed video, best first."""
    return Sent(json=_given(video_id=video_id, labels=list(labels), prompt=prompt, segment=segment))


@endpoint("POST", "/v1/classify/video", _a(ClassifyAnswer))
def classify_video(path: Path | str, labels: Sequence[str], *, prompt: str | None = None) -> Sent:
    """Which of some labels describe a video file, of which nothing is kept."""
    form: dict[str, str | list[str]] = {"labels": list(labels)}
    if prompt is not None:
        form["prompt"] = prompt
    return Sent(file=Path(path), form=form)


@endpoint("POST", "/v1/caption", _a(WrittenCaptionAnswer))
def write_caption(video_id: str, *, segment: int | None = None) -> Sent:
    """A caption that the model writes for an indexed video; needs a model with a caption head."""
    return Sent(json=_given(video_id=video_id, segment=segment))


@endpoint("POST", "/v1/caption/video", _a(WrittenCaptionAnswer))
def write_caption_video(path: Path | str) -> Sent:
    """A caption that the model writes for a video file, of which nothing is kept."""
    return Sent(file=Path(path))


@endpoint("POST", "/v1/answer", _a(QuestionAnswer))
def answer(video_id: str, question: str, *, top: int | None = None, segment: int | None = None) -> Sent:
    """Answers to a question about an indexed video, best first; needs a model with an answer head."""
    return Sent(json=_given(video_id=video_id, question=question, top=top, segment=segment))


@endpoint("POST", "/v1/answer/video", _a(QuestionAnswer))
def answer_video(path: Path | str, question: str, *, top: int | None = None) -> Sent:
    """Answers to a question about a video file, of which nothing is kept."""
    return Sent(file=Path(path), form=_given(question=question, top=top))


@endpoint("POST", "/v1/rerank", _a(SearchAnswer))
def rerank(text: str, segments: Sequence[tuple[str, int]], *, rerank: Literal["emcl", "none"] = "emcl") -> Sent:
    """Scores of given segments, (video id, number), for a text."""
    named = [{"video_id": video_id, "segment": number} for video_id, number in segments]
    return Sent(json={"text": text, "segments": named, "rerank": rerank})


@endpoint("POST", "/v1/embeddings", _a(EmbeddingsAnswer))
def embeddings(texts: Sequence[str]) -> Sent:
    """Unit vectors of texts, as stage 1 compares them with the index."""
    return Sent(json={"texts": list(texts)})


@endpoint("POST", "/v1/search/image", _a(UploadAnswer))
def search_image(
    path: Path | str,
    *,
    k: int = 10,
    offset: int = 0,
    candidates: int | None = None,
    rerank: Rerank = "emcl",
    group: Group = "video",
) -> Sent:
    """Videos like a picture, and captions for it; nothing of it is kept."""
    query = _given(k=k, offset=offset, candidates=candidates, rerank=rerank, group=group)
    return Sent(file=Path(path), query=query)


@endpoint("POST", "/v1/search/export", _text)
def export_search(
    text: str | None = None,
    *,
    format: ListFormat,
    video_id: str | None = None,
    frame_rate: int | None = None,
    k: int = 10,
    rerank: Rerank = "emcl",
    tags: Sequence[str] = (),
    min_seconds: float | None = None,
    max_seconds: float | None = None,
    filter: Mapping[str, Any] | None = None,
    min_confidence: float | None = None,
    fusion: Fusion = "auto",
) -> Sent:
    """What a search finds as a playlist (`m3u`), an edit decision list (`edl`) or a page with pictures (`html`)."""
    return _searching(
        text=text,
        video_id=video_id,
        format=format,
        frame_rate=frame_rate,
        k=k,
        rerank=rerank,
        min_confidence=min_confidence,
        fusion=fusion,
        tags=tags,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        filter=filter,
    )


# Videos and captions.


@endpoint("GET", "/v1/videos", _a(VideosPage))
def videos(
    *,
    offset: int = 0,
    limit: int = 100,
    state: Literal["indexed", "failed", "pending", "any"] = "indexed",
    tags: Sequence[str] = (),
    title: str | None = None,
    sort: Literal["id", "newest", "recorded", "title", "longest", "shortest"] | None = None,
) -> Sent:
    """A page of videos: those with all of ``tags``, and a title that contains ``title``; ``sort`` None is by id."""
    return Sent(query=_given(offset=offset, limit=limit, state=state, tag=list(tags) or None, title=title, sort=sort))


@endpoint("POST", "/v1/videos", _a(VideoAdded))
def add_video(
    path: Path | str, *, title: str | None = None, tags: Sequence[str] = (), captions: Sequence[str] = ()
) -> Sent:
    """Upload a video to be indexed; wait for the ``job_id`` of the answer, if it has one."""
    form: dict[str, Any] = _given(title=title, tags=list(tags) or None, captions=list(captions) or None)
    return Sent(file=Path(path), form=form)


@endpoint("PATCH", "/v1/videos/{video_id}", _a(VideoOut))
def edit_video(video_id: str, *, tags: Sequence[str] | None = None, title: str | None = None) -> Sent:
    """Give a video exactly these tags, or this title; what is ``None`` stays as it is."""
    return Sent(path={"video_id": video_id}, json=_given(tags=None if tags is None else list(tags), title=title))


delete_video = Endpoint("DELETE", "/v1/videos/{video_id}", _nothing, _of_video, "Remove a video with its captions.")


@endpoint("GET", "/v1/captions", _a(CaptionsPage))
def captions(*, video_id: str | None = None, offset: int = 0, limit: int = 100) -> Sent:
    """A page of the captions, of one video or of all."""
    return Sent(query=_given(video_id=video_id, offset=offset, limit=limit))


@endpoint("POST", "/v1/captions", _a(CaptionsAdded))
def add_captions(texts: Sequence[str], *, video_id: str | None = None) -> Sent:
    """Add captions to a video, or to none."""
    return Sent(json={"captions": [_given(text=text, video_id=video_id) for text in texts]})


@endpoint("DELETE", "/v1/captions/{caption_id}", _nothing)
def delete_caption(caption_id: int) -> Sent:
    """Remove a caption."""
    return Sent(path={"caption_id": str(caption_id)})


video = Endpoint("GET", "/v1/videos/{video_id}", _a(VideoOut), _of_video, "One video.")

video_bytes = Endpoint(
    "GET", "/v1/videos/{video_id}/stream", _content, _of_video, "The bytes of a video's file, all of them in memory."
)

preview = Endpoint(
    "GET",
    "/v1/videos/{video_id}/preview",
    _content,
    _of_video,
    "An H.264 preview of a video that browsers cannot play, made when it is first asked for; all in memory.",
)


@endpoint("GET", "/v1/videos/{video_id}/thumbnail", _content)
def thumbnail(video_id: str, *, seconds: float | None = None) -> Sent:
    """A JPEG of a moment; default: the middle."""
    return Sent(path={"video_id": video_id}, query=_given(t=seconds))


@endpoint("GET", "/v1/videos/{video_id}/sprite", _content)
def sprite(video_id: str, *, segment: int | None = None) -> Sent:
    """A JPEG of many moments, six tiles in a row: the frames of a segment, or 24 moments of the whole video."""
    return Sent(path={"video_id": video_id}, query=_given(segment=segment))


@endpoint("GET", "/v1/videos/{video_id}/clip", _content)
def clip(video_id: str, start_seconds: float, end_seconds: float, *, encode: bool = False) -> Sent:
    """A moment as an MP4 file; ``encode`` never copies packets, for players that ignore edit lists."""
    query = _given(**{"from": start_seconds, "to": end_seconds, "encode": encode or None})
    return Sent(path={"video_id": video_id}, query=query)


@endpoint("GET", "/v1/videos/{video_id}/transcript", _text)
def transcript(video_id: str, *, language: str | None = None) -> Sent:
    """What is said in a video, as WebVTT; default: the first language that the video lists."""
    return Sent(path={"video_id": video_id}, query=_given(language=language))


@endpoint("PUT", "/v1/videos/{video_id}/transcript", _a(TranscriptPut))
def put_transcript(video_id: str, content: bytes | str, *, language: str | None = None) -> Sent:
    """Put or replace a transcript: WebVTT, SubRip or Whisper's JSON."""
    body = content.encode() if isinstance(content, str) else content
    return Sent(path={"video_id": video_id}, query=_given(language=language), body=body)


@endpoint("DELETE", "/v1/videos/{video_id}/transcript", _nothing)
def delete_transcript(video_id: str, *, language: str | None = None) -> Sent:
    """Remove a transcript, or all of a video."""
    return Sent(path={"video_id": video_id}, query=_given(language=language))


# The index and its health.


index = Endpoint("GET", "/v1/index", _a(IndexAnswer), _alone, "What is served.")

reload = Endpoint("POST", "/v1/index/reload", _a(IndexAnswer), _alone, "Serve the newest generation.")

live = Endpoint("GET", "/health/live", _a(LiveAnswer), _alone, "Does the process answer?")

ready = Endpoint("GET", "/health/ready", _a(ReadyAnswer), _alone, "Does search work?")

metrics = Endpoint("GET", "/metrics", _text, _alone, "The metrics, as Prometheus reads them.")

session = Endpoint(
    "GET", "/v1/session", _a(SessionAnswer), _alone, "Who this client is to the service, and whether keys are required."
)


# Jobs.


@endpoint("POST", "/v1/jobs", _a(JobOut))
def submit_job(kind: Literal["index", "train", "evaluate", "calibrate"], **parameters: Any) -> Sent:
    """Submit a job; ``parameters`` as ``docs/api.md`` describes them for each kind."""
    return Sent(json={"kind": kind, **parameters})


@endpoint("GET", "/v1/jobs", _a(JobsPage))
def jobs(*, state: str | None = None, kind: str | None = None, offset: int = 0, limit: int = 100) -> Sent:
    """A page of jobs, newest first."""
    return Sent(query=_given(state=state, kind=kind, offset=offset, limit=limit))


job = Endpoint("GET", "/v1/jobs/{job_id}", _a(JobOut), _of_job, "One job.")


@endpoint("GET", "/v1/jobs/{job_id}/log", _text)
def job_log(job_id: str, *, offset: int = 0) -> Sent:
    """What a job printed, from a number of bytes on."""
    return Sent(path={"job_id": job_id}, query={"offset": offset})


@endpoint("GET", "/v1/jobs/{job_id}/log", _content)
def job_log_bytes(job_id: str, *, offset: int = 0) -> Sent:
    """The same, not decoded: a character may be cut at the end."""
    return Sent(path={"job_id": job_id}, query={"offset": offset})


job_metrics = Endpoint("GET", "/v1/jobs/{job_id}/metrics", _a(JobMetrics), _of_job, "The curves of a training job.")

cancel_job = Endpoint(
    "POST", "/v1/jobs/{job_id}/cancel", _a(JobOut), _of_job, "Cancel a waiting job, or stop a running one."
)

resume_job = Endpoint(
    "POST", "/v1/jobs/{job_id}/resume", _a(JobOut), _of_job, "Queue a failed, cancelled or lost job again."
)

forget_job = Endpoint(
    "DELETE", "/v1/jobs/{job_id}", _nothing, _of_job, "Remove a finished job with everything that it made."
)
