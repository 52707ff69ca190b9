"""Errors that a caller of the service can act on, each with what was wrong, what was expected, and the next step.

    ServiceError                 status  slug
    ├── BadRequest               400     bad-request
    ├── Unauthorised             401     unauthorised        (carries WWW-Authenticate)
    ├── Forbidden                403     forbidden
    ├── NotFound                 404     not-found
    ├── RequestTimeout           408     request-timeout
    ├── Conflict                 409     conflict
    ├── Gone                     410     gone
    ├── TooLarge                 413     too-large
    ├── UnsupportedMedia         415     unsupported-media
    ├── RangeNotSatisfiable      416     range-not-satisfiable
    ├── Misdirected              421     misdirected
    ├── Unprocessable            422     unprocessable
    ├── RateLimited              429     rate-limited        (carries Retry-After)
    └── Overloaded               503     overloaded          (carries Retry-After)

They do not depend on HTTP frameworks, so that the engine can raise them; ``service.http.problems`` turns them into RFC
9457 problem details, and the command line prints them. Anything else that is raised is a bug: status 500.

It also recognises a full disk among other errors, and has the answer for it.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import ClassVar


class ServiceError(ValueError):
    """Base of all errors above. ``headers`` are added to the HTTP answer."""

    status: ClassVar[int]
    title: ClassVar[str]
    slug: ClassVar[str]

    def __init__(self, detail: str, *, expected: str, next_step: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{detail}; expected {expected}; {next_step}")
        self.detail = detail
        self.expected = expected
        self.next_step = next_step
        self.headers = dict(headers or {})


class BadRequest(ServiceError):  # noqa: N818 - the name says what it is
    """The request cannot be read as what it claims to be."""

    status, title, slug = 400, "The request cannot be read", "bad-request"


class Unauthorised(ServiceError):  # noqa: N818
    """The request carries no key, or none that is valid."""

    status, title, slug = 401, "A key is needed", "unauthorised"

    def __init__(self, detail: str, *, expected: str, next_step: str) -> None:
        super().__init__(
            detail, expected=expected, next_step=next_step, headers={"WWW-Authenticate": 'Bearer realm="emcl"'}
        )


class Forbidden(ServiceError):  # noqa: N818
    """The key is valid, but may not do this."""

    status, title, slug = 403, "The key may not do this", "forbidden"


class NotFound(ServiceError):  # noqa: N818
    """Nothing has this identifier."""

    status, title, slug = 404, "Not found", "not-found"


class RequestTimeout(ServiceError):  # noqa: N818
    """The client took too long to send its request."""

    status, title, slug = 408, "The request took too long to arrive", "request-timeout"


class Conflict(ServiceError):  # noqa: N818
    """The request conflicts with the present state."""

    status, title, slug = 409, "Conflict", "conflict"


class Gone(ServiceError):  # noqa: N818
    """The catalogue knows it, but its file is no longer where it was."""

    status, title, slug = 410, "The file is gone", "gone"


class PreconditionFailed(ServiceError):  # noqa: N818
    """What the client wants to have in one version is there in another."""

    status, title, slug = 412, "A precondition failed", "precondition-failed"


class TooLarge(ServiceError):  # noqa: N818
    """A body, or what is inside it, is over a limit."""

    status, title, slug = 413, "Too large", "too-large"


class UnsupportedMedia(ServiceError):  # noqa: N818
    """The body's type is not accepted by this route."""

    status, title, slug = 415, "Unsupported media type", "unsupported-media"


class RangeNotSatisfiable(ServiceError):  # noqa: N818
    """The byte range is outside of the file."""

    status, title, slug = 416, "The range cannot be satisfied", "range-not-satisfiable"


class Misdirected(ServiceError):  # noqa: N818
    """The Host header names a host that this server does not answer for."""

    status, title, slug = 421, "Wrong host", "misdirected"


class Unprocessable(ServiceError):  # noqa: N818
    """The request is readable, but its values cannot be used."""

    status, title, slug = 422, "The request cannot be processed", "unprocessable"


class RateLimited(ServiceError):  # noqa: N818
    """This key exceeds its rate; nothing was done, so retrying later is safe."""

    status, title, slug = 429, "Too many requests", "rate-limited"

    def __init__(self, detail: str, *, expected: str, next_step: str, retry_after_seconds: int = 1) -> None:
        super().__init__(
            detail, expected=expected, next_step=next_step, headers={"Retry-After": str(max(1, retry_after_seconds))}
        )


class Overloaded(ServiceError):  # noqa: N818
    """Too much work is waiting; nothing was done, so retrying later is safe."""

    status, title, slug = 503, "The service is busy", "overloaded"

    def __init__(self, detail: str, *, expected: str, next_step: str, retry_after_seconds: int = 1) -> None:
        super().__init__(
            detail, expected=expected, next_step=next_step, headers={"Retry-After": str(max(1, retry_after_seconds))}
        )


RETRY_SECONDS = 5


def is_full(error: BaseException) -> bool:
    """Whether it was raised because there was no space, or no quota, to write."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def refusal() -> Overloaded:
    """The answer if something cannot be written. Paths appear only in the log."""
    return Overloaded(
        "there is no space left on a disk of the service",
        expected="space for what is to be kept",
        next_step="try again when the operator has made space there; nothing that was acknowledged before is lost",
        retry_after_seconds=RETRY_SECONDS,
    )
