"""What the job store knows about one job.

    queued ──► running ──► succeeded | failed | cancelled | lost
       ▲          │                        │
       └──────────┴──── resume, or a worker that was stopped ◄──┘

``lost`` means that the processes of a running job ended without a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "lost"]

STATES: tuple[JobState, ...] = ("queued", "running", "succeeded", "failed", "cancelled", "lost")
UNFINISHED: tuple[JobState, ...] = ("queued", "running")

JOB_ID = r"^[0-9a-f]{16}$"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgress:
    """How far a job is: ``done`` of ``total`` units; ``total`` is 0 while it is unknown."""

    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job. Times are seconds since 1970 and only informative: nothing depends on them.

    ``attempts`` counts how often it was started; ``stopping``: its cancellation was requested.
    ``key_name`` names the key that submitted it, ``None`` without keys.
    """

    job_id: str
    kind: str
    state: JobState
    parameters: Mapping[str, Any]
    progress: JobProgress = JobProgress()
    attempts: int = 0
    created: float
    started: float | None = None
    ended: float | None = None
    result: Mapping[str, Any] | None = None
    error: str | None = None
    resumable: bool = False
    stopping: bool = False
    key_name: str | None = None
    pid: int | None = None
    host: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, until somebody resumes it."""
        return self.state not in UNFINISHED
