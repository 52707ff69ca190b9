"""What goes wrong for a client of the service, as exceptions.

ClientError
├── NoAnswerError             the service could not be reached, or did not answer in time
├── UnexpectedAnswerError     an answer that is none of this service (a proxy's page, another version)
├── JobFailedError            a job that was waited for did not succeed
└── ProblemError              the service said no, and why: the fields of its problem details
    ├── UnauthorisedError     401     ├── TooLargeError          413
    ├── ForbiddenError        403     ├── UnsupportedMediaError  415
    ├── NotFoundError         404     ├── UnprocessableError     422
    ├── ConflictError         409     ├── BusyError              429 and 503, after all retries
    └── GoneError             410     └── ServiceFailedError     500
"""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from service.schemas.jobs import JobOut
from service.schemas.search import Problem


class ClientError(Exception):
    """Base of all errors above."""


class NoAnswerError(ClientError):
    """The service could not be reached, or did not answer in time."""


class UnexpectedAnswerError(ClientError):
    """An answer that this client cannot read."""


class JobFailedError(ClientError):
    """A job ended, but not well. ``job`` says how."""

    def __init__(self, job: JobOut) -> None:
        super().__init__(f"job {job.job_id} ({job.kind}) is {job.state}: {job.error or 'no reason given'}")
        self.job = job


class ProblemError(ClientError):
    """The service refused, or failed. ``problem`` holds all that it said; ``slug`` is the kind, as ``/docs`` lists it.

    ``retry_after_seconds`` is when trying again makes sense, if the service said so.
    """

    def __init__(self, problem: Problem, retry_after_seconds: float | None) -> None:
        super().__init__(f"{problem.detail}; expected {problem.expected}; {problem.next_step}")
        self.problem = problem
        self.status = problem.status
        self.slug = problem.type.removeprefix("/docs#problem-")
        self.detail = problem.detail
        self.expected = problem.expected
        self.next_step = problem.next_step
        self.request_id = problem.request_id
        self.retry_after_seconds = retry_after_seconds


class UnauthorisedError(ProblemError):
    """No key, or none that is valid."""


class ForbiddenError(ProblemError):
    """The key may not do this."""


class NotFoundError(ProblemError):
    """Nothing has this identifier."""


class ConflictError(ProblemError):
    """What was asked for does not go together with what is there."""


class GoneError(ProblemError):
    """The file of a video is no longer where it was."""


class TooLargeError(ProblemError):
    """Over a limit."""


class UnsupportedMediaError(ProblemError):
    """Not a video, or not what the route takes."""


class UnprocessableError(ProblemError):
    """Values that cannot be used; ``problem.errors`` names the fields."""


class BusyError(ProblemError):
    """The service is busy or the key asks too often; nothing was done."""


class ServiceFailedError(ProblemError):
    """A fault of the service; ``problem.incident`` finds it in its log."""


_BY_STATUS: dict[int, type[ProblemError]] = {
    401: UnauthorisedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    413: TooLargeError,
    415: UnsupportedMediaError,
    422: UnprocessableError,
    429: BusyError,
    500: ServiceFailedError,
    503: BusyError,
}


def error_of(response: httpx.Response) -> ClientError:
    """The exception for an answer with an error status, whose body was read."""
    try:
        problem = Problem.model_validate_json(response.content, extra="ignore")
    except ValidationError:
        start = response.text[:200]
        return UnexpectedAnswerError(
            f"{response.request.method} {response.request.url.path}: {response.status_code} without problem details: "
            f"{start!r}; is this the address of the search service?"
        )
    return _BY_STATUS.get(problem.status, ProblemError)(problem, retry_after_seconds(response))


def retry_after_seconds(response: httpx.Response) -> float | None:
    """The seconds of a ``Retry-After`` header; ``None`` without one, or if it is a date."""
    given = response.headers.get("retry-after", "")
    return float(given) if given.isdecimal() else None
