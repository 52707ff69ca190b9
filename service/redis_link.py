"""Bounded access to Redis: short timeouts, no retries, and a circuit breaker while it fails.

Nothing that Redis does may cost a search more than its timeout, or fail it. A call without an answer returns ``None``,
which each caller treats as "not known". After a few failures in a row calls are skipped: one background task checks
until Redis answers again. The URL may hold a password: neither it nor an error that quotes it is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from service.background import Background

if TYPE_CHECKING:
    from service.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Status = Literal["ok", "unavailable", "off"]

_FAILURES_TO_OPEN = 3
_MAX_CONNECTIONS = 32


class RedisLink:
    """A client of the Redis at ``url``, or of none. Start it inside a running event loop, and close it there.

    ``calls`` counts what was asked, ``errors`` what Redis refused (out of memory, a key of another type), ``failures``
    what it did not answer in time or at all, ``skipped`` what was not asked because of that.
    """

    def __init__(self, url: str | None, *, timeout_seconds: float, retry_seconds: float) -> None:
        self.where = "" if url is None else _without_secrets(url)
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self.client: Redis | None = None
        self._slots = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._in_a_row = 0
        self._last_failure = ""
        self._probe: asyncio.Task[None] | None = None
        self.background = Background("redis probe")
        self._refusal_logged = False
        self.calls = 0
        self.errors = 0
        self.failures = 0
        self.skipped = 0

    @property
    def available(self) -> bool:
        """Whether calls are worth making now."""
        return self.client is not None and self._probe is None

    @property
    def status(self) -> Status:
        """``off`` without a Redis, ``unavailable`` while it does not answer."""
        if self._url is None:
            return "off"
        return "ok" if self.available else "unavailable"

    def start(self) -> None:
        """Make the client, which is in use from the moment when Redis answers its first ping."""
        if self._url is not None:
            self.client = client_of(self._url, self._timeout_seconds)
            self._ask_in_background(at_once=True)

    async def close(self) -> None:
        """Close all connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        if self.client is not None:
            await self.client.aclose()
            self.client = None

    async def call(self, use: Callable[[Redis], Awaitable[T]]) -> T | None:
        """What ``use`` gets from Redis within the timeout, connecting included, or ``None``. Raises nothing."""
        if self.client is None or self._probe is not None:
            self.skipped += 1
            return None
        self.calls += 1
        try:
            async with asyncio.timeout(self._timeout_seconds), self._slots:
                answer = await use(self.client)
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:  # TimeoutError is an OSError
            self._failed(error)
            return None
        except RedisError as error:
            self._refused(error)
            return None
        self._in_a_row = 0
        return answer

    def _refused(self, error: RedisError) -> None:
        """Redis refuses a call: it stays in use, because reads may work where writes do not."""
        self.errors += 1
        self._in_a_row = 0
        if not self._refusal_told:
            self._refusal_logged = True
            word = str(error).split(" ", 1)[0][:40] if isinstance(error, ResponseError) else ""
            logger.warning("redis at %s refuses calls (%s %s); logged once", self.where, type(error).__name__, word)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._in_a_row += 1
        self._last_failure = type(error).__name__
        if self._in_a_row >= _FAILURES_TO_OPEN:
            self._ask_in_background(at_once=False)

    def _ask_in_background(self, *, at_once: bool) -> None:
        """Skip Redis until it answers a ping."""
        if self._probe is None:
            asking = self._ask_until_answered(at_once)
            self._probe = asyncio.get_running_loop().create_task(asking, name="redis probe")

    async def _ask_until_answered(self, at_once: bool) -> None:
        assert self.client is not None
        logged = False
        while not (at_once and await self._answers(self.client)):
            if not logged:
                logged = True
                logger.warning("redis at %s is unavailable (%s); continuing without it", self.where, self._last_failure)
            await self.background.attempt_async(self._drop_connections, asyncio.sleep)
            await asyncio.sleep(self._retry_seconds)
            at_once = True
        logger.info("redis at %s answers", self.where)
        self._in_a_row, self._refusal_told, self._probe = 0, False, None

    async def _drop_connections(self) -> None:
        assert self.client is not None
        try:
            await self.client.connection_pool.disconnect(inuse_connections=False)  # they may be half dead
        except Exception as error:  # whose text may quote the URL
            raise RuntimeError(f"closing the connections failed ({type(error).__name__})") from None

    async def _answers(self, client: Redis) -> bool:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await client.ping()
        except Exception as error:  # of whatever kind: it does not answer, and is checked again
            self._last_failure = type(error).__name__
            return False
        return True


def build_redis_link(settings: Settings) -> RedisLink:
    """The link of the settings."""
    return RedisLink(
        settings.redis_url,
        timeout_seconds=settings.redis_timeout_ms / 1000,
        retry_seconds=settings.redis_retry_seconds,
    )


def client_of(url: str, timeout_seconds: float) -> Redis:
    """A client whose every wait is bounded."""
    pool = ConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        socket_connect_timeout=timeout_seconds,
        socket_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
    )
    return Redis.from_pool(pool)


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or "localhost"
    return f"{host}:{parts.port or 6379}{parts.path}"
