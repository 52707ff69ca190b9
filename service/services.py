"""What routes work with: the engine behind its batcher, uploads, pictures. Built once, handed to the application.

Everything that computes runs in one bounded executor: queries through a batcher that gathers them, all else (uploads,
single stages, the ready check) through one that takes calls one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from service.access.gate import build_gate
from service.access.rate_limit import build_rate_limiter
from service.http.answers import writing
from service.http.middleware import Admission
from service.http.uploads import UploadReceiver
from service.jobs.service import JobDesk
from service.library.library import Library
from service.library.upload_store import MEDIA
from service.media.files import Thumbnails
from service.media.previews import PreviewLimits, Previews
from service.media.sandbox import Fence, FenceLimits, Leash, UploadedFrames
from service.observe.metrics import Telemetry
from service.redis_link import build_redis_link
from service.search.batching import Batcher
from service.search.compute_queue import Lanes
from service.search.engine import Engine
from service.search.live_index import Watcher
from service.search.query import QueryLimits, SearchQuery, SearchResult
from service.search.result_cache import SharedCache
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.store.reader import Serving

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WATCHED_AFTER_SECONDS = 0.02


class Services:
    """All parts of a running service. Start it inside a running event loop, and close it before the loop ends."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        telemetry: Telemetry | None = None,
        *,
        jobs: JobDesk | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.telemetry = telemetry or Telemetry()
        self.admission = Admission(max_requests=settings.max_requests, max_body_bytes=settings.max_body_bytes)
        self.fence = Fence(fence_limits(settings))
        self.receiver = UploadReceiver(
            max_bytes=settings.upload_max_bytes,
            slots=settings.upload_slots,
            timeout_seconds=settings.upload_timeout_seconds,
            folder=settings.upload_folder,
        )
        self.thumbnails = Thumbnails(
            width=settings.thumbnail_width,
            cache_bytes=settings.thumbnail_cache_bytes,
            max_queue=settings.max_queue,
            fence=self.fence,
            uploads=settings.store.absolute() / MEDIA,
        )
        self.previews = Previews(settings.preview_folder.absolute(), preview_limits(settings))
        self.jobs = jobs or JobDesk(settings)
        self.requests = 0  # that are being answered
        self._decoders = ThreadPoolExecutor(settings.upload_workers, thread_name_prefix="decode")
        self.library = Library(
            settings.store,
            engine,
            fence=self.fence,
            book=self.jobs.book,
            compute=self._compute_in_a_thread,
            overlay_rows=settings.overlay_max_rows,
            max_pending=settings.max_jobs,
        )
        self.watcher = Watcher(engine.live, settings.watch_seconds)
        self.lanes = Lanes(self.telemetry.batched(writing(engine.search)), settings, lambda: limit_threads(settings))
        self.searches = self.lanes.searches
        self.redis = build_redis_link(settings)
        self.gate = build_gate(settings, build_rate_limiter(settings, self.redis))
        self.shared = SharedCache(
            engine,
            self.redis,
            result_bytes=settings.result_cache_bytes,
            keep_seconds=settings.result_cache_seconds,
            precision=engine.encoder.runtime.label,
        )

    def start(self) -> None:
        """Begin to take work."""
        self._loop = asyncio.get_running_loop()
        self.redis.start()
        self.lanes.start()
        self.thumbnails.start()
        self.previews.start()
        self.jobs.start()
        self.library.start()
        self.watcher.start()

    async def close(self, *, keep_jobs: bool = False) -> None:
        """Stop taking work, let what is being computed end, and close the index; jobs too, unless others have them."""
        await asyncio.to_thread(self.library.close)  # it computes until it has stopped
        await asyncio.to_thread(self.watcher.close)
        await asyncio.gather(self.lanes.close(), self.thumbnails.close(), self.previews.close(), self.shared.close())
        await self.redis.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        if not keep_jobs:
            await asyncio.to_thread(self.jobs.close)
        self.engine.close()

    @property
    def queues(self) -> dict[str, Batcher[Any, Any]]:
        """Everything that makes requests wait, by name."""
        return {**self.lanes.queues, "thumbnail": self.thumbnails.batcher, "preview": self.previews.batcher}

    async def search(self, queries: Sequence[SearchQuery]) -> list[SearchResult]:
        """The results of some queries: those that are known at once, the others when their turn comes.

        Raises ``Overloaded`` if too many wait, or if they waited too long, and what ``Engine.search`` raises.
        """
        started = perf_counter()
        found = await self.shared.look_up(queries)
        known = {"cache": perf_counter() - started}
        unknown = [query for query, result in zip(queries, found, strict=True) if result is None]
        if unknown:
            texts = self.shared.missing([query.text for query in unknown if query.text is not None])
            computed = await self.searches.submit_all(unknown)
            self.shared.keep(unknown, computed, texts)
        else:
            computed = []
        fresh = iter(computed)
        return [
            next(fresh) if result is None else replace(result, source=replace(result.source, stage_seconds=known))
            for result in found
        ]

    async def probe(self) -> SearchResult:
        """One query through every stage, ahead of all that waits: what "ready" means."""
        return await self.lanes.once(self.engine.probe)

    async def compute(self, call: Callable[[], T]) -> T:
        """Run a call of the engine when its turn comes. Raises ``Overloaded`` if too many wait."""
        return cast(T, await self.lanes.calls.submit(call))

    def _compute_in_a_thread(self, call: Callable[[], T]) -> T:
        """``compute`` for a thread that may wait."""
        return asyncio.run_coroutine_threadsafe(self.compute(call), self._loop).result()

    async def compute_on_texts(self, texts: Sequence[str], call: Callable[[], T]) -> T:
        """``compute`` for a call that embeds ``texts``: embeddings that others computed are fetched first."""
        await self.shared.look_up_texts(texts)
        missing = self.shared.missing(texts)
        result = await self.compute(call)
        self.shared.keep_texts(missing)
        return result

    async def decode(self, file: IO[bytes]) -> UploadedFrames:
        """Decode an upload in a fenced process, killed if cancelled; at most ``upload_workers`` at once."""
        sampling, size, leash = self.engine.sampling, self.engine.encoder.image_size, Leash()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._decoders, lambda: self.fence.decode(file, sampling=sampling, image_size=size, leash=leash)
            )
        except asyncio.CancelledError:
            leash.pull()
            raise


def fence_limits(settings: Settings) -> FenceLimits:
    """The limits of the decoding process, of the settings."""
    return FenceLimits(
        wall_seconds=settings.decode_wall_seconds,
        cpu_seconds=settings.decode_cpu_seconds,
        memory_bytes=settings.decode_memory_bytes,
        max_bytes=settings.upload_max_bytes,
        max_seconds=settings.upload_max_seconds,
        max_pixels=settings.upload_max_pixels,
    )


def preview_limits(settings: Settings) -> PreviewLimits:
    """The limits of previews, of the settings; memory and pixels are those of the decoding process."""
    return PreviewLimits(
        cache_bytes=settings.preview_cache_bytes,
        seconds=settings.preview_seconds,
        memory_bytes=settings.decode_memory_bytes,
        max_seconds=settings.upload_max_seconds,
        max_pixels=settings.upload_max_pixels,
    )


def query_limits(settings: Settings, *, default_candidates: int = 100) -> QueryLimits:
    """The limits of one query, of the settings; the default is the checkpoint's, as far as the settings let it."""
    return QueryLimits(
        max_texts=settings.max_texts,
        max_text_chars=settings.max_text_chars,
        max_candidates=settings.max_candidates,
        default_candidates=min(default_candidates, settings.max_candidates),
    )


def limit_threads(settings: Settings) -> None:
    """Set how many threads one batch may use. FAISS counts for the calling thread alone: call it where it computes."""
    import torch

    from indexer.ann.index import set_threads

    torch.set_num_threads(settings.threads)
    set_threads(settings.faiss_threads)


def serving_of(settings: Settings) -> Serving:
    """How the indexes are held, of the settings."""
    from indexer.store.reader import Serving

    return Serving(mmap=settings.index_mmap, device=settings.faiss_device)


def build_engine(settings: Settings) -> Engine:
    """Open the store and load the model that it was built with, or the one that the settings name.

    Raises ``ValueError`` if there is no store, no such model, or if they do not belong together.
    """
    from indexer.store.reader import StoreReader
    from model.encoder import load_encoder

    limit_threads(settings)
    serving = serving_of(settings)
    with StoreReader.open(settings.store) as reader:
        spec = reader.manifest.model_spec
    named = settings.model is not None
    encoder = load_encoder(
        settings.model if named else spec.model,
        pretrained=settings.pretrained if named else settings.pretrained or spec.pretrained,
        device=settings.device,
        precision=settings.precision,
        runtime=settings.runtime,
        exports=settings.exports,
    )
    logger.info("model %s, fingerprint %s", encoder.config.name, encoder.fingerprint[:12])
    return Engine(
        encoder,
        lambda: StoreReader.open(settings.store, fingerprint=encoder.fingerprint, serving=serving),
        limits=query_limits(settings, default_candidates=encoder.config.search.candidates),
        cache_entries=settings.cache_entries,
    )


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client goes away first. Raises ``ClientDisconnect`` then.

    Who is answered within ``_WATCHED_AFTER_SECONDS`` is not watched: it costs tasks that take longer than is saved.
    """
    task = asyncio.current_task()
    assert task is not None, "a request is answered in a task"
    watch = _Watch(request, task)
    begin = asyncio.get_running_loop().call_later(_WATCHED_AFTER_SECONDS, watch.begin)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.has_cancelled and task.cancelling() <= watch.cancelling_before + 1:
            raise ClientDisconnect from None
        raise  # somebody else, too, wants this task to end
    finally:
        begin.cancel()
        watch.end()
        if watch.has_cancelled:
            task.uncancel()


class _Watch:
    """Cancels ``task`` when the client of ``request`` has gone, from ``begin`` to ``end``."""

    def __init__(self, request: Request, task: asyncio.Task[Any]) -> None:
        self.has_cancelled = False
        self.cancelling_before = task.cancelling()
        self._request = request
        self._task = task
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._watching = asyncio.ensure_future(self._wait())

    def end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()

    async def _wait(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.has_cancelled = True
        self._task.cancel()


async def _services(request: Request) -> AsyncIterator[Services]:
    services: Services = request.app.state.services  # the same for the whole request, whatever is served meanwhile
    services.requests += 1
    try:
        yield services
    finally:
        services.requests -= 1


ServicesDep = Annotated[Services, Depends(_services)]
