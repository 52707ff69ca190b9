"""How both clients send a request, how long they wait for a busy service, and how they read its answer.

What goes wrong for a client of the service, as exceptions.

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

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import httpx
from pydantic import ValidationError

from service.client.calls import Call
from service.schemas.jobs import JobOut
from service.schemas.search import Problem


class ClientError(Exception):
    """Base of all errors above."""


class NoAnswerError(ClientError):
    """The service could not be reached, or did not answer in time."""


class UnexpectedAnswerError(ClientError):
    """An answer that this client cannot read."""


class JobFailedError(ClientError):
    """A job ended without success. ``job`` has the details."""

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
    """The request conflicts with the present state."""


class GoneError(ProblemError):
    """The file of a video is no longer where it was."""


class TooLargeError(ProblemError):
    """Over a limit."""


class UnsupportedMediaError(ProblemError):
    """Not a video, or not what the route takes."""


class UnprocessableError(ProblemError):
    """Values that cannot be used; ``problem.errors`` names the fields."""


class BusyError(ProblemError):
    """The service is busy, or the key exceeds its rate; nothing was done."""


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


T = TypeVar("T")

_BUSY = (429, 503)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a request to a busy service is retried, and for how long in all."""

    retries: int = 3
    seconds: float = 30.0


class Waits:
    """How long to wait before a request is sent again."""

    def __init__(self, patience: Patience) -> None:
        self._retries_left = patience.retries
        self._seconds_left = patience.seconds

    def after(self, response: httpx.Response) -> float | None:
        """Seconds, or ``None`` if this answer is the last."""
        pause = retry_after_seconds(response) if response.status_code in _BUSY else None
        if pause is None or self._retries_left == 0 or pause > self._seconds_left:
            return None
        self._retries_left -= 1
        self._seconds_left -= pause
        return pause


def connection_of(base_url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """What httpx's clients, of both kinds, are made with."""
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    return {"base_url": base_url, "headers": headers, "timeout": timeout_seconds}


@contextmanager
def readable(call: Call[Any]) -> Iterator[IO[bytes] | None]:
    """The file that a call uploads, from its start, for each time that it is sent."""
    with ExitStack() as stack:
        yield None if call.sent.file is None else stack.enter_context(call.sent.file.open("rb"))


def arguments_of(call: Call[Any], file: IO[bytes] | None) -> dict[str, Any]:
    """What httpx is to send."""
    sent = call.sent
    arguments: dict[str, Any] = {"params": sent.query}
    if sent.json is not None:
        arguments["json"] = sent.json
    if sent.body is not None:
        arguments["content"] = sent.body
    if file is not None:
        arguments["files"] = {"file": file}
        arguments["data"] = sent.form
    return arguments


def answer_of(call: Call[T], response: httpx.Response) -> T:
    """What the service answered. Raises ``ClientError``."""
    if not response.is_success:
        raise error_of(response)
    try:
        return call.read(response)
    except ValidationError as error:
        raise UnexpectedAnswerError(
            f"{call.method} {call.path} answered what this client does not know; are both of one version? {error}"
        ) from error


def no_answer(base_url: httpx.URL, error: httpx.TransportError) -> NoAnswerError:
    """The error for a missing answer."""
    return NoAnswerError(
        f"no answer from {base_url}: {str(error) or type(error).__name__}; is the service running (`emcl serve`)?"
    )
