"""Batch jobs: index, train, evaluate, calibrate. They run beside the service; these routes only write and read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as InPath
from starlette.responses import FileResponse, Response, StreamingResponse

from service.access.gate import require
from service.jobs.commands import RUN, read_lines
from service.jobs.kinds import AnyJob
from service.jobs.record import JOB_ID, Job, JobState
from service.jobs.submission import JobService
from service.schemas.jobs import JobMetrics, JobOut, JobsPage

_EVENT_SECONDS = 0.5
_KEEP_ALIVE_SECONDS = 15.0  # proxies close silent connections
_BLOCK_BYTES = 64 * 1024
_ACCEPTED = 202
_TEXT = "text/plain; charset=utf-8"

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[require("admin")])


def _job_service(request: Request) -> JobService:
    # Not ``ServicesDep``: a client that follows a job for hours must not keep an index open that is no longer served.
    jobs: JobService = request.app.state.services.jobs
    return jobs


JobServiceDep = Annotated[JobService, Depends(_job_service)]
JobId = Annotated[str, InPath(pattern=JOB_ID, description="A job's id.")]


@router.post("", summary="Submit a job", status_code=_ACCEPTED)
async def submit_job(asked: AnyJob, request: Request, response: Response, jobs: JobServiceDep) -> JobOut:
    """Accept a job after checking everything that can be checked before it runs. 503 if too many are waiting."""
    key = getattr(request.state, "key", None)
    job = await asyncio.to_thread(jobs.submit, asked, key_name=None if key is None else key.name)
    response.headers["Location"] = f"/v1/jobs/{job.job_id}"
    return JobOut.of(job)


@router.get("", summary="List jobs")
async def list_jobs(
    jobs: JobServiceDep,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[str | None, Query(max_length=100, description="Only jobs of this kind.")] = None,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Jobs to leave out before the first.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most jobs.")] = 100,
) -> JobsPage:
    """A page of jobs, newest first."""

    def read() -> JobsPage:
        job_store = jobs.job_store
        job_store.find_lost()
        return JobsPage(
            jobs=[JobOut.of(job) for job in job_store.list(state=state, kind=kind, offset=offset, limit=limit)],
            total=job_store.count(state=state, kind=kind),
            offset=offset,
            limit=limit,
            counts=job_store.counts(),
        )

    return await asyncio.to_thread(read)


@router.get("/{job_id}", summary="Describe a job")
async def get_job(job_id: JobId, jobs: JobServiceDep) -> JobOut:
    """One job: state, progress, result or error."""
    return JobOut.of(await asyncio.to_thread(_look, jobs, job_id))


@router.get("/{job_id}/log", summary="Read a job's log", response_class=Response)
async def get_job_log(
    job_id: JobId,
    request: Request,
    jobs: JobServiceDep,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Bytes to leave out before the first.")] = 0,
) -> Response:
    """The output of the job's process so far, as text; byte ranges work. The header X-Log-Size is the offset to
    continue from.
    """
    path = await asyncio.to_thread(_log_path, jobs, job_id)
    size = path.stat().st_size
    headers = {"X-Log-Size": str(max(offset, size)), "X-Content-Type-Options": "nosniff", "Accept-Ranges": "bytes"}
    if "range" in request.headers:
        return FileResponse(path, media_type=_TEXT, headers=headers)
    length = max(0, size - offset)  # of a file that grows: what was there when we looked
    headers["Content-Length"] = str(length)
    return StreamingResponse(_blocks(path, offset, length), media_type=_TEXT, headers=headers)


@router.get("/{job_id}/metrics", summary="Curves of a training job")
async def get_job_metrics(job_id: JobId, jobs: JobServiceDep) -> JobMetrics:
    """Every step and validation that the run has logged; empty for jobs of other kinds."""

    def read() -> JobMetrics:
        job = jobs.job_store.get(job_id)
        return JobMetrics.of(job_id, read_lines(jobs.job_store.job_folder(job.job_id) / RUN / "log.jsonl"))

    return await asyncio.to_thread(read)


@router.get("/{job_id}/events", summary="Follow a job", response_class=StreamingResponse)
async def follow_job(job_id: JobId, request: Request, jobs: JobServiceDep) -> StreamingResponse:
    """Server-sent events until the job has ended: `job` (as JSON, when it changed) and `log` (new text, as JSON).

    The id of a `log` event is the offset behind it; sent back as Last-Event-ID, it goes on from there.
    """
    path = await asyncio.to_thread(_log_path, jobs, job_id)
    given = request.headers.get("last-event-id", "0")
    offset = int(given) if given.isascii() and given.isdigit() and len(given) < 17 else 0
    return StreamingResponse(
        _events(jobs, job_id, path, offset),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.post("/{job_id}/cancel", summary="Cancel a job", status_code=_ACCEPTED)
async def cancel_job(job_id: JobId, jobs: JobServiceDep) -> JobOut:
    """A waiting job is cancelled at once; a running one is interrupted, then killed. 409 if it has ended."""
    return JobOut.of(await asyncio.to_thread(jobs.cancel, job_id))


@router.post("/{job_id}/resume", summary="Resume a job", status_code=_ACCEPTED)
async def resume_job(job_id: JobId, jobs: JobServiceDep) -> JobOut:
    """Queue a failed, cancelled or lost job again; it continues where it stopped. 409 otherwise."""
    return JobOut.of(await asyncio.to_thread(jobs.resume, job_id))


@router.delete("/{job_id}", summary="Forget a job", status_code=204)
async def forget_job(job_id: JobId, jobs: JobServiceDep) -> None:
    """Remove a finished job with its log and output. 409 if it runs, or if its output is still used."""
    await asyncio.to_thread(jobs.forget, job_id)


def _look(jobs: JobService, job_id: str) -> Job:
    job = jobs.job_store.get(job_id)
    if job.state != "running":
        return job
    jobs.job_store.find_lost()
    return jobs.job_store.get(job_id)


def _log_path(jobs: JobService, job_id: str) -> Path:
    path = jobs.job_store.log_path(job_id)
    path.touch()  # it has none before it first runs
    return path


def _read_from(path: Path, offset: int, most: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(most)


async def _blocks(path: Path, offset: int, length: int) -> AsyncIterator[bytes]:
    while length > 0:
        content = await asyncio.to_thread(_read_from, path, offset, min(length, _BLOCK_BYTES))
        if not content:  # the job was forgotten meanwhile
            return
        offset, length = offset + len(content), length - len(content)
        yield content


async def _events(jobs: JobService, job_id: str, path: Path, offset: int) -> AsyncIterator[str]:
    shown, silent = "", 0.0
    while True:
        job = await asyncio.to_thread(_look, jobs, job_id)
        if (state := JobOut.of(job).model_dump_json()) != shown:
            shown, silent = state, 0.0
            yield f"event: job\ndata: {state}\n\n"
        while content := await asyncio.to_thread(_read_from, path, offset, _BLOCK_BYTES):
            offset, silent = offset + len(content), 0.0
            yield f"event: log\nid: {offset}\ndata: {json.dumps(content.decode('utf-8', 'replace'))}\n\n"
        if job.finished:
            return
        if silent >= _KEEP_ALIVE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(_EVENT_SECONDS)
        silent += _EVENT_SECONDS
