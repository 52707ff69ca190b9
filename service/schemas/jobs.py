"""The JSON of jobs in answers; what requests may hold is in ``service.jobs.kinds``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from service.jobs.record import Job, JobState
from service.schemas.search import Answer, Request


class ReloadRequest(Request):
    """Which index to serve; without ``index``, the newest generation of the present one."""

    index: str | None = Field(
        None,
        pattern=r"^(configured|[0-9a-f]{16})$",
        description='The id of an index job with store "new", or `configured`: the one that the service began with.',
    )


class JobProgressOut(Answer):
    """How far a job is."""

    done: int
    total: int = Field(description="0 while unknown.")
    note: str


class JobOut(Answer):
    """A job."""

    job_id: str
    kind: str
    state: JobState = Field(description="`lost`: its processes ended without a result.")
    stopping: bool = Field(description="It is being cancelled.")
    resumable: bool = Field(description="POST …/resume continues it.")
    parameters: dict[str, Any]
    progress: JobProgressOut
    attempts: int
    created: datetime
    started: datetime | None
    ended: datetime | None
    result: dict[str, Any] | None
    error: str | None
    key_name: str | None = Field(description="Name of the key that submitted it.")

    @classmethod
    def of(cls, job: Job) -> JobOut:
        """The JSON of a job."""
        return cls(
            job_id=job.job_id,
            kind=job.kind,
            state=job.state,
            stopping=job.stopping,
            resumable=job.resumable,
            parameters=dict(job.parameters),
            progress=JobProgressOut(done=job.progress.done, total=job.progress.total, note=job.progress.note),
            attempts=job.attempts,
            created=_time(job.created),
            started=None if job.started is None else _time(job.started),
            ended=None if job.ended is None else _time(job.ended),
            result=None if job.result is None else dict(job.result),
            error=job.error,
            key_name=job.key_name,
        )


class JobsPage(Answer):
    """A page of jobs, newest first."""

    jobs: list[JobOut]
    total: int
    offset: int
    limit: int
    counts: dict[str, int] = Field(description="All jobs by state.")


class JobMetrics(Answer):
    """What a training run logged."""

    job_id: str
    metrics: list[dict[str, Any]] = Field(
        description="In order: `step` with `loss` and rates, or with `validation` (R@K in both directions)."
    )

    @classmethod
    def of(cls, job_id: str, lines: list[Mapping[str, Any]]) -> JobMetrics:
        """The JSON of a run's log."""
        return cls(job_id=job_id, metrics=[dict(line) for line in lines])


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
