"""A typed client of the service: ``Client``, and ``AsyncClient`` for asyncio.

    with Client("http://127.0.0.1:8000", api_key="emcl_…") as client:
        for hit in client.search("a big red heart circles around over a brown checkerboard background", k=3).hits:
            print(hit.title, hit.moment, hit.score)

Answers are the service's own schemas; errors are exceptions (``service.client.transport``). A service that is busy
(429, 503 with ``Retry-After``) did nothing, so the request is retried after the time that it names, within
``Patience``. Importing this loads no model and needs none of PyTorch, FAISS and FFmpeg.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from service.client import calls
from service.client.calls import Call
from service.client.transport import (
    ClientError,
    JobFailedError,
    Patience,
    Waits,
    answer_of,
    arguments_of,
    connection_of,
    no_answer,
    readable,
)
from service.schemas.jobs import JobOut

__all__ = ["AsyncClient", "Client", "ClientError", "Patience"]

T = TypeVar("T")

_UNFINISHED = ("queued", "running")


class _Endpoints:
    """The methods of both clients; see ``service.client.calls`` for their arguments."""

    search = calls.search
    search_many = calls.search_many
    search_video = calls.search_video
    search_image = calls.search_image
    export_search = calls.export_search
    rerank = calls.rerank
    embeddings = calls.embeddings
    classify = calls.classify
    classify_video = calls.classify_video
    answer = calls.answer
    answer_video = calls.answer_video
    write_caption = calls.write_caption
    write_caption_video = calls.write_caption_video
    videos = calls.videos
    video = calls.video
    add_video = calls.add_video
    edit_video = calls.edit_video
    delete_video = calls.delete_video
    video_bytes = calls.video_bytes
    preview = calls.preview
    thumbnail = calls.thumbnail
    sprite = calls.sprite
    clip = calls.clip
    transcript = calls.transcript
    put_transcript = calls.put_transcript
    delete_transcript = calls.delete_transcript
    captions = calls.captions
    add_captions = calls.add_captions
    delete_caption = calls.delete_caption
    index = calls.index
    reload = calls.reload
    live = calls.live
    ready = calls.ready
    metrics = calls.metrics
    session = calls.session
    submit_job = calls.submit_job
    jobs = calls.jobs
    job = calls.job
    job_log = calls.job_log
    job_log_bytes = calls.job_log_bytes
    job_metrics = calls.job_metrics
    cancel_job = calls.cancel_job
    resume_job = calls.resume_job
    forget_job = calls.forget_job


class Client(_Endpoints):
    """Talks to the service at ``base_url``. Use as a context manager, or close it.

    ``api_key`` is a key of ``emcl keys create``; ``timeout_seconds`` is for one answer; ``transport`` is httpx's, for
    tests and proxies.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._http = httpx.Client(**connection_of(base_url, api_key, timeout_seconds), transport=transport)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, call: Call[T]) -> T:
        """Send a call, and retry while the service is busy and patience lasts. Raises ``ClientError``."""
        waits = Waits(self._patience)
        while True:
            with readable(call) as file:
                try:
                    response = self._http.request(call.method, call.path, **arguments_of(call, file))
                except httpx.TransportError as error:
                    raise no_answer(self._http.base_url, error) from error
            pause = waits.after(response)
            if pause is None:
                return answer_of(call, response)
            time.sleep(pause)

    def wait_for_job(
        self,
        job_id: str,
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = 0.5,
        on_log: Callable[[str], None] | None = None,
    ) -> JobOut:
        """Wait until a job has succeeded; ``on_log`` is given what it prints.

        Raises ``JobFailedError`` if it ends otherwise, ``TimeoutError`` if it has not ended in time.
        """
        deadline, log = _deadline(timeout_seconds), _Follower(on_log)
        while True:
            job = self.job(job_id)
            if log.wanted:
                log.take(self.job_log_bytes(job_id, offset=log.offset))
            if _is_over(job, deadline):
                return job
            time.sleep(poll_seconds)


class AsyncClient(_Endpoints):
    """As ``Client``, with coroutines as methods."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        patience: Patience | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._http = httpx.AsyncClient(**connection_of(base_url, api_key, timeout_seconds), transport=transport)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run_later(self, call: Call[T]) -> T:
        """Send a call, and retry while the service is busy and patience lasts. Raises ``ClientError``."""
        waits = Waits(self._patience)
        while True:
            with readable(call) as file:
                try:
                    response = await self._http.request(call.method, call.path, **arguments_of(call, file))
                except httpx.TransportError as error:
                    raise no_answer(self._http.base_url, error) from error
            pause = waits.after(response)
            if pause is None:
                return answer_of(call, response)
            await asyncio.sleep(pause)

    async def wait_for_job(
        self,
        job_id: str,
        *,
        timeout_seconds: float | None = None,
        poll_seconds: float = 0.5,
        on_log: Callable[[str], None] | None = None,
    ) -> JobOut:
        """As ``Client.wait_for_job``."""
        deadline, log = _deadline(timeout_seconds), _Follower(on_log)
        while True:
            job = await self.job(job_id)
            if log.wanted:
                log.take(await self.job_log_bytes(job_id, offset=log.offset))
            if _is_over(job, deadline):
                return job
            await asyncio.sleep(poll_seconds)


class _Follower:
    """Passes on a growing log as text, never splitting a character."""

    def __init__(self, on_text: Callable[[str], None] | None) -> None:
        self.wanted = on_text is not None
        self.offset = 0
        self._on_text = on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, new: bytes) -> None:
        self.offset += len(new)
        if self._on_text is not None and (text := self._decoder.decode(new)):
            self._on_text(text)


def _deadline(timeout_seconds: float | None) -> float | None:
    return None if timeout_seconds is None else time.monotonic() + timeout_seconds


def _is_over(job: JobOut, deadline: float | None) -> bool:
    if job.state == "succeeded":
        return True
    if job.state not in _UNFINISHED:
        raise JobFailedError(job)
    if deadline is not None and time.monotonic() >= deadline:
        raise TimeoutError(f"job {job.job_id} ({job.kind}) is still {job.state}")
    return False
