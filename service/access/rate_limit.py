"""Rates of keys: token buckets, shared through Redis or, without it, kept in this process.

A bucket holds at most ``burst`` tokens and gains ``per_second``; a request takes one. In Redis one script does it all
at once, by Redis' own clock, so that no two processes count differently. When Redis does not answer, each process uses
its own buckets: the limit then applies per process and is never off. The workers of one
service share theirs in mapped memory (``SharedTokenBuckets``), so it applies to all of them together.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import struct
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import cachetools

from service.errors import RateLimited

if TYPE_CHECKING:
    from service.redis_link import RedisLink
    from service.settings import Settings
    from service.workers import WorkerPlace

MAX_BUCKETS = 10_000
# KEYS[1] the bucket; ARGV: tokens a second, burst. Returns the seconds to wait as text, "0" if a token was taken.
# A bucket that holds nonsense counts as full, one from the future (the clock was set back) as from now.
_SCRIPT = """
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(held[1] or burst), tonumber(held[2] or now)
if not tokens or tokens ~= tokens or tokens < 0 then tokens = burst end
if not at or at ~= at or at > now then at = now end
tokens = math.min(burst, tokens + (now - at) * rate)
local wait = 0
if tokens >= 1 then tokens = tokens - 1 else wait = (1 - tokens) / rate end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return string.format('%.6f', wait)
"""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """``per_second`` tokens in the long run, ``burst`` at once; ``what`` they are spent on, in the plural."""

    what: str
    per_second: float
    burst: int


class Buckets(Protocol):
    """Where tokens are taken."""

    def take(self, name: str, rate: Rate) -> float:
        """Take a token: 0, or the seconds until there is one."""
        ...


class TokenBuckets:
    """Buckets of this process; of ever more names, those that were used last are kept."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._buckets: cachetools.LRUCache[str, tuple[float, float]] = cachetools.LRUCache(MAX_BUCKETS)

    def take(self, name: str, rate: Rate) -> float:
        """Take a token: 0, or the seconds until there is one."""
        now = self._clock()
        tokens, at = self._buckets.get(name, (float(rate.burst), now))
        tokens = min(rate.burst, tokens + (now - at) * rate.per_second)
        enough = tokens >= 1
        self._buckets[name] = (tokens - 1 if enough else tokens, now)
        return 0.0 if enough else (1 - tokens) / rate.per_second

    def __len__(self) -> int:
        return len(self._buckets)


class SharedTokenBuckets:
    """Buckets of all processes that map ``path``, under a lock of the kernel, which a process that dies releases.

    A table of ``MAX_BUCKETS`` places. A name has its bucket at one of a few places; where all are taken, that which was
    was used longest ago makes room. Times are of the machine's monotonic clock, which all its processes share.
    """

    _PLACE = struct.Struct("=16sdd")  # digest of the name, tokens, when
    _NEAR = 8

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, MAX_BUCKETS * self._PLACE.size)
        self._table = mmap.mmap(self._file, MAX_BUCKETS * self._PLACE.size)

    def take(self, name: str, rate: Rate) -> float:
        """Take a token: 0, or the seconds until there is one."""
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        home = int.from_bytes(digest[:8], "big") % (MAX_BUCKETS - self._NEAR)
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            now = self._clock()
            places = [(home + step) * self._PLACE.size for step in range(self._NEAR)]
            near = [self._PLACE.unpack_from(self._table, place) for place in places]
            step = next((step for step, (held, _, _) in enumerate(near) if held == digest), None)
            if step is None:
                step = min(range(self._NEAR), key=lambda number: near[number][2])
                tokens = float(rate.burst)
            else:
                _, tokens, at = near[step]
                tokens = min(rate.burst, tokens + (now - at) * rate.per_second)
            enough = tokens >= 1
            left = tokens - 1 if enough else tokens
            self._PLACE.pack_into(self._table, places[step], digest, left, now)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return 0.0 if enough else (1 - tokens) / rate.per_second


class RateLimiter:
    """Lets each name spend ``requests`` and ``uploads``; a rate of 0 means no limit. ``rejected`` counts refusals."""

    def __init__(
        self,
        link: RedisLink,
        *,
        requests: Rate,
        uploads: Rate,
        limit_clients: bool,
        buckets: Buckets | None = None,
    ) -> None:
        self.requests = requests
        self.uploads = uploads
        self.limit_clients = limit_clients
        self.rejected = 0
        self._link = link
        self._own: Buckets = buckets or TokenBuckets()

    async def take(self, name: str, rate: Rate) -> None:
        """Spend a token of ``name``. Raises ``RateLimited``, which says when there will be one."""
        if rate.per_second == 0:
            return
        wait = await self._shared_wait(name, rate) if self._link.available else None
        if wait is None:
            wait = self._own.take(f"{rate.what} {name}", rate)
        if wait > 0:
            self.rejected += 1
            raise _refusal(rate, wait)

    async def _shared_wait(self, name: str, rate: Rate) -> float | None:
        digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        key, arguments = f"emcl:rate:{rate.what}:{digest}", (str(rate.per_second), str(rate.burst))

        async def ask(client: Any) -> Any:
            return await client.register_script(_SCRIPT)(keys=[key], args=arguments)

        answer = await self._link.call(ask)
        try:
            wait = math.nan if answer is None else float(answer)
        except (TypeError, ValueError):
            return None
        return wait if math.isfinite(wait) else None


def build_rate_limiter(settings: Settings, link: RedisLink, place: WorkerPlace) -> RateLimiter:
    """The limits of the settings, for all workers together."""
    return RateLimiter(
        link,
        requests=Rate(what="requests", per_second=settings.rate_limit, burst=settings.rate_burst),
        uploads=Rate(what="uploads", per_second=settings.upload_rate_per_minute / 60, burst=settings.upload_burst),
        limit_clients=settings.limit_clients,
        buckets=None if place.is_alone else SharedTokenBuckets(place.shared("rates")),
    )


def _refusal(rate: Rate, wait_seconds: float) -> RateLimited:
    often = f"{rate.per_second:g} a second" if rate.per_second >= 1 else f"{rate.per_second * 60:g} a minute"
    return RateLimited(
        f"more {rate.what} than this key may make",
        expected=f"at most {rate.burst} {rate.what} at once and {often} in the long run",
        next_step="wait for the seconds in Retry-After, or ask for a higher limit",
        retry_after_seconds=math.ceil(wait_seconds),
    )
