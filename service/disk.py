"""A full disk, told from other trouble, and what is answered then."""

from __future__ import annotations

import errno
import sqlite3

from service.errors import Overloaded

RETRY_SECONDS = 5


def is_full(error: BaseException) -> bool:
    """Whether it was raised because there was no space, or no quota, to write."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def refusal() -> Overloaded:
    """The answer to what cannot be written. Paths are for the log alone."""
    return Overloaded(
        "there is no space left on a disk of the service",
        expected="space for what is to be kept",
        next_step="try again when the operator has made space there; nothing that was acknowledged before is lost",
        retry_after_seconds=RETRY_SECONDS,
    )
