"""The queue that carries the ids of jobs from the service to workers: huey's storage, in Redis or in a file.

It is a doorbell, not the truth: what it loses the worker puts in again from the book, and what it delivers twice is
started once, because starting is a claim in the book. So nothing travels but 16 hexadecimal digits, and nothing is
deserialised. Jobs of several books may share a Redis; each book has a list of its own.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from huey.storage import RedisStorage, SqliteStorage  # type: ignore[import-untyped]
from redis import BlockingConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.jobs.record import JOB_ID

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 1.0
READ_SECONDS = 2.0  # more than the second that huey's blocking read waits for a job


class QueueUnavailableError(Exception):
    """The queue cannot be reached, is full or read-only. What is in the book is not lost."""


class Storage(Protocol):
    """What we use of huey's storage."""

    def enqueue(self, data: bytes) -> None:
        """Add to the end."""

    def dequeue(self) -> bytes | None:
        """Take the first."""

    def enqueued_items(self) -> list[bytes]:
        """Everything in it."""

    def queue_size(self) -> int:
        """How much is in it."""

    def close(self) -> object:
        """Close connections of this thread."""


class JobQueue:
    """Ids of jobs that wait, first in first out. Safe for several threads and processes."""

    def __init__(self, storage: Storage, *, waits: bool) -> None:
        self._storage = storage
        self.waits = waits
        """Whether ``take`` waits a second for a job; else whoever calls it should pause."""

    def check(self) -> None:
        """Raises ``QueueUnavailableError`` if the queue cannot be reached."""
        try:
            self._storage.queue_size()
        except (RedisError, sqlite3.Error, OSError) as error:
            raise QueueUnavailableError(_reason(error)) from error

    def put(self, job_id: str) -> None:
        """Add a job. Raises ``QueueUnavailableError``."""
        try:
            self._storage.enqueue(job_id.encode("ascii"))
        except (RedisError, sqlite3.Error, OSError) as error:
            raise QueueUnavailableError(_reason(error)) from error

    def take(self) -> str | None:
        """Take the next job's id; ``None`` if there is none. Raises ``QueueUnavailableError``."""
        try:
            return _job_id(self._storage.dequeue())
        except (RedisError, sqlite3.Error, OSError) as error:
            raise QueueUnavailableError(_reason(error)) from error

    def put_missing(self, job_ids: Iterable[str]) -> int:
        """Add those that are not in the queue; returns how many. Raises ``QueueUnavailableError``."""
        try:
            waiting = {_job_id(item) for item in self._storage.enqueued_items()}
        except (RedisError, sqlite3.Error, OSError) as error:
            raise QueueUnavailableError(_reason(error)) from error
        missing = [job_id for job_id in job_ids if job_id not in waiting]
        for job_id in missing:
            self.put(job_id)
        return len(missing)

    def close(self) -> None:
        """Close the connections of the calling thread."""
        self._storage.close()


def open_queue(folder: Path, book_name: str, redis_url: str | None) -> JobQueue:
    """The queue of a book: in Redis if there is one, else in ``FOLDER/queue.db``. Connects when it is first used."""
    if redis_url is None:
        return JobQueue(SqliteStorage("jobs", filename=str(folder / "queue.db")), waits=False)
    pool = BlockingConnectionPool.from_url(
        redis_url,
        max_connections=64,
        timeout=CONNECT_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=READ_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    return JobQueue(RedisStorage(f"emcl{book_name}", connection_pool=pool), waits=True)


def _job_id(data: bytes | memoryview | None) -> str | None:
    if data is None:
        return None
    text = bytes(data).decode("ascii", errors="replace")
    if re.fullmatch(JOB_ID, text):
        return text
    logger.warning("dropped an entry of the job queue that is no job's id: %r", text[:40])
    return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
