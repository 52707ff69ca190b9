"""Cached results and text embeddings, in this process and, shared with others, in Redis.

In: the queries of one request. Out: what is known of them. A result is known by a digest of all that decides it: the
program's version, the model's fingerprint and configuration, what computes it (runtime and precision), the version of
the index, and every parameter of the query. A text embedding is known by all of these that shape it. So nothing of
another model, another generation or another setting can be found, however old the values in Redis are.

What comes from Redis is trusted as far as its bytes prove: each value repeats the digest it is kept under and carries a
checksum, so that a value that was damaged, cut or moved to another key counts as unknown. (A client
that may write to Redis can still forge a value: keep it private.) Values are bounded when written and when read.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from service.search.cache import LRUCache
from service.search.values import SearchQuery, SearchResult

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from service.redis_link import RedisLink
    from service.search.engine import Engine

MAX_VALUE_BYTES = 512 * 1024  # a result of 100 hits with 64 frames each is about 400 KiB
_MAGIC = b"emcl1"
_DIGEST_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + 2 * _DIGEST_BYTES
MAX_WRITES = 64  # under way at once; beyond that what was computed is not shared
_RESULT: TypeAdapter[SearchResult] = TypeAdapter(SearchResult)


class SharedCache:
    """Results of ``engine``, and the embeddings of texts that its own cache lacks.

    ``results`` is the cache inside this process, with its own counters. ``shared_hits`` counts results found in Redis,
    ``misses`` those that had to be computed; ``embedding_hits`` and ``embedding_misses`` texts that were looked up in
    Redis; ``damaged`` values that did not prove what they are; ``dropped`` what was not shared because too much was
    being written.
    """

    def __init__(
        self, engine: Engine, link: RedisLink, *, result_bytes: int, keep_seconds: int, precision: str
    ) -> None:
        self.results: LRUCache[bytes, bytes] = LRUCache(result_bytes, weigh=len)
        self.shared_hits = 0
        self.misses = 0
        self.embedding_hits = 0
        self.embedding_misses = 0
        self.damaged = 0
        self.dropped = 0
        self._engine = engine
        self._link = link
        self._keep_seconds = keep_seconds
        self._writes: set[asyncio.Task[None]] = set()
        encoder = engine.encoder
        base = [version("emcl-search"), encoder.fingerprint, precision]
        self._text_base = _hashed(json.dumps(base))
        self._result_base = _hashed(
            json.dumps([*base, encoder.config.model_dump(mode="json"), asdict(engine.fusion)], sort_keys=True)
        )

    async def close(self) -> None:
        """Drop what is still being written."""
        for write in self._writes:
            write.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)

    async def look_up(self, queries: Sequence[SearchQuery]) -> list[SearchResult | None]:
        """Results that are known for the present version of the index; fills the engine's cache of embeddings."""
        digests = self._result_digests(queries)
        found = [self.local(digest) for digest in digests]
        unknown = [place for place, result in enumerate(found) if result is None]
        if unknown:
            texts = [text for place in unknown if (text := queries[place].text) is not None]
            shared = await self._ask([digests[place] for place in unknown], texts)
            for place, result in zip(unknown, shared, strict=True):
                found[place] = result
        self.misses += sum(result is None for result in found)
        return found

    async def look_up_texts(self, texts: Sequence[str]) -> None:
        """Fill the engine's cache of embeddings with what Redis has of them."""
        await self._ask([], texts)

    def keep_texts(self, texts: Sequence[str]) -> None:
        """Share embeddings that were computed, in the background; ``texts`` as ``missing`` gave them."""
        self._share(self._sealed_rows(texts))

    def keep(self, queries: Sequence[SearchQuery], results: Sequence[SearchResult], texts: Sequence[str]) -> None:
        """Remember what was computed, under the version that it was computed with; ``texts`` as ``missing`` gave them.

        Sharing goes on in the background: no request waits for it.
        """
        values: dict[str, bytes] = {}
        if self.results.capacity > 0:
            for query, result in zip(queries, results, strict=True):
                digest = self.result_digest(query, result.source.version)
                payload = _RESULT.dump_json(_bare(result))
                if len(payload) <= MAX_VALUE_BYTES - _HEAD_BYTES:
                    self.results.put(digest, payload)
                    values[_result_key(digest)] = sealed(digest, payload)
        self._share(values | self._sealed_rows(texts))

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those whose embeddings will have to be computed, and could then be shared."""
        if not self._link.available:
            return []
        fingerprint = self._engine.encoder.fingerprint
        return [text for text in dict.fromkeys(texts) if (fingerprint, text) not in self._engine.texts]

    # Reading.

    def local(self, digest: bytes) -> SearchResult | None:
        """A result that this process keeps."""
        payload = self.results.get(digest)
        return None if payload is None else _RESULT.validate_json(payload)

    async def _ask(self, digests: Sequence[bytes], texts: Sequence[str]) -> list[SearchResult | None]:
        """Ask Redis for results and for the embeddings of texts that the engine lacks, in one round trip."""
        fingerprint = self._engine.encoder.fingerprint
        kept = self._engine.texts
        lacking = [text for text in dict.fromkeys(texts) if kept.capacity > 0 and (fingerprint, text) not in kept]
        wanted = {text: self.text_digest(text) for text in lacking}
        keys = [_result_key(digest) for digest in digests] if self.results.capacity > 0 else []
        keys += [_text_key(digest) for digest in wanted.values()]
        values = await self._link.call(lambda client: _get_bounded(client, keys)) if keys else None
        if values is None:
            return [None] * len(digests)
        found = {key: value for key, value in zip(keys, values, strict=True) if isinstance(value, bytes) and value}
        for text, digest in wanted.items():
            self._take_row(text, self._opened(digest, found.get(_text_key(digest))))
        return [self._take_result(digest, self._opened(digest, found.get(_result_key(digest)))) for digest in digests]

    def _take_result(self, digest: bytes, payload: bytes | None) -> SearchResult | None:
        if payload is None:
            return None
        try:
            result = _RESULT.validate_json(payload)
        except ValidationError:
            self.damaged += 1
            return None
        self.shared_hits += 1
        self.results.put(digest, payload)
        return result

    def _take_row(self, text: str, payload: bytes | None) -> None:
        encoder = self._engine.encoder
        if payload is None:
            self.embedding_misses += 1
            return
        row_D = np.frombuffer(payload, dtype="<f4") if len(payload) == 4 * encoder.dim else None
        if row_D is None or not np.isfinite(row_D).all():
            self.damaged += 1
            return
        self.embedding_hits += 1
        self._engine.texts.put((encoder.fingerprint, text), row_D.astype(np.float32))

    def _opened(self, digest: bytes, value: bytes | None) -> bytes | None:
        if value is None:
            return None
        payload = _opened(digest, value)
        self.damaged += payload is None
        return payload

    # Writing.

    def _sealed_rows(self, texts: Sequence[str]) -> dict[str, bytes]:
        fingerprint = self._engine.encoder.fingerprint
        values = {}
        for text in texts:
            row_D = self._engine.texts.get((fingerprint, text))
            if row_D is not None:
                digest = self.text_digest(text)
                values[_text_key(digest)] = sealed(digest, np.asarray(row_D, dtype="<f4").tobytes())
        return values

    def _share(self, values: dict[str, bytes]) -> None:
        if not values or not self._link.available:
            return
        if len(self._writes) >= MAX_WRITES:
            self.dropped += len(values)
            return
        write = asyncio.get_running_loop().create_task(self._write(values), name="share what was computed")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def _write(self, values: dict[str, bytes]) -> None:
        await self._link.call(lambda client: _set_all(client, values, self._keep_seconds))

    # What decides a value.

    def _result_digests(self, queries: Sequence[SearchQuery]) -> list[bytes]:
        if self.results.capacity == 0:  # nothing is kept, so nothing can be found
            return [b""] * len(queries)
        with self._engine.live.lease() as generation:
            present = generation.version
        return [self.result_digest(query, present) for query in queries]

    def result_digest(self, query: SearchQuery, index_version: str) -> bytes:
        """What names the result of a query over one version of the index."""
        candidates = self._engine.limits.candidates_of(query.ranking)
        # A query's text form holds every field of it by name, texts quoted and escaped: two that differ never agree.
        return _digest(self._result_base, f"{index_version!r} {candidates} {query!r}")

    def text_digest(self, text: str) -> bytes:
        """What names the embedding of a text."""
        return _digest(self._text_base, text)


def _bare(result: SearchResult) -> SearchResult:
    """The result without the timings of the request that computed it."""
    return replace(result, source=replace(result.source, stage_seconds={}))


def _hashed(base: str) -> hashlib.blake2b:
    return hashlib.blake2b(base.encode(), digest_size=_DIGEST_BYTES)


def _digest(base: hashlib.blake2b, rest: str) -> bytes:
    """Of ``base``, which was hashed once, and what is particular."""
    digest = base.copy()
    digest.update(rest.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _result_key(digest: bytes) -> str:
    return f"emcl:result:{digest.hex()}"


def _text_key(digest: bytes) -> str:
    return f"emcl:text:{digest.hex()}"


def sealed(digest: bytes, payload: bytes) -> bytes:
    """A value for Redis: the payload after its digest and checksum."""
    return _MAGIC + digest + hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest() + payload


def _opened(digest: bytes, value: bytes) -> bytes | None:
    """The payload of a value that was sealed under this digest and is whole."""
    payload = value[_HEAD_BYTES:]
    return payload if value == sealed(digest, payload) else None


async def _get_bounded(client: Redis, keys: Sequence[str]) -> list[Any]:
    """Values by key, at most ``MAX_VALUE_BYTES`` of each (one that is longer proves damaged then)."""
    async with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.getrange(key, 0, MAX_VALUE_BYTES - 1)
        return list(await pipe.execute(raise_on_error=False))


async def _set_all(client: Redis, values: dict[str, bytes], keep_seconds: int) -> None:
    async with client.pipeline(transaction=False) as pipe:
        for key, value in values.items():
            pipe.set(key, value, ex=keep_seconds)
        await pipe.execute()
