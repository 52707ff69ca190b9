"""The container of everything that routes use: engine, queues, caches, uploads, jobs.

All computing runs in one thread: queries through a batcher, other calls (uploads, single stages, the readiness check)
one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import IO, Annotated, Any, TypeVar, cast

from fastapi import Depends, Request

from service.access.gate import build_gate
from service.access.rate_limit import build_rate_limiter
from service.background import Background
from service.http.forwarding import CHANGES
from service.http.middleware import Admission
from service.http.uploads import UploadReceiver
from service.jobs.submission import JobService
from service.library.engine_applier import EngineApplier
from service.library.folder_watch import FolderWatch
from service.library.library import Library
from service.library.webhooks import Webhooks
from service.media.files import Thumbnails
from service.media.fork_server import ForkServer
from service.media.previews import PreviewLimits, Previews
from service.media.sandbox import KillSwitch, Sandbox, SandboxLimits, UploadedFrames
from service.media.sprites import TIME_OF_PICTURES, Sprites
from service.observe.metrics import Telemetry
from service.redis_link import build_redis_link
from service.search.batching import Batcher
from service.search.compute_queue import ComputeQueue
from service.search.engine import Engine, limit_threads
from service.search.live_index import Watcher
from service.search.query_log import QueryLog
from service.search.result_cache import SharedCache
from service.search.values import SearchQuery, SearchResult
from service.settings import Settings
from service.workers import ALONE, ChangeCounter, WorkerPlace

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Services:
    """All parts of a running service. Start it inside a running event loop, and close it before the loop ends.

    Of several workers (``place``), the leader alone changes the store, runs jobs, watches folders and sends webhooks.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        telemetry: Telemetry | None = None,
        *,
        jobs: JobService | None = None,
        place: WorkerPlace = ALONE,
    ) -> None:
        self.settings = settings
        self.place = place
        self.engine = engine
        self.telemetry = telemetry or Telemetry()
        self.admission = Admission(max_requests=settings.max_requests, max_body_bytes=settings.max_body_bytes)
        self.fork_server = ForkServer()
        self.sandbox = Sandbox(SandboxLimits.from_settings(settings), self.fork_server)
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
            sandbox=Sandbox(SandboxLimits.of_thumbnails(settings), self.fork_server),
        )
        self.sprites = Sprites(
            settings.preview_folder.absolute() / "sprites",
            side=settings.thumbnail_width // 2,
            cache_bytes=settings.thumbnail_cache_bytes,
            max_queue=settings.max_queue,
            sandbox=Sandbox(SandboxLimits.of_thumbnails(settings, TIME_OF_PICTURES), self.fork_server),
        )
        self.previews = Previews(
            settings.preview_folder.absolute(), PreviewLimits.from_settings(settings), self.fork_server
        )
        self.jobs = jobs or JobService(settings, runs=place.leads)
        self.requests = 0  # under way
        self._decoders = ThreadPoolExecutor(settings.upload_workers, thread_name_prefix="decode")
        self.library = Library(
            settings.store,
            engine,
            sandbox=self.sandbox,
            job_store=self.jobs.job_store,
            compute=self._compute_in_a_thread,
            overlay_rows=settings.overlay_max_rows,
            max_pending=settings.max_jobs,
        )
        self.watcher = Watcher(engine.live, settings.watch_seconds)
        self.engine_applier = EngineApplier(settings)
        self.folder_watch = FolderWatch(settings)
        self.webhooks = Webhooks(settings, self.jobs.job_store, engine.live)
        self.compute_queue = ComputeQueue(
            self.telemetry.batched(engine.search), settings, lambda: limit_threads(settings)
        )
        self.searches = self.compute_queue.searches
        self.redis = build_redis_link(settings)
        self.gate = build_gate(settings, build_rate_limiter(settings, self.redis, place))
        self.query_log = QueryLog(settings.store, settings.query_log if place.leads else 0)
        self.shared = SharedCache(
            engine,
            self.redis,
            result_bytes=settings.result_cache_bytes,
            keep_seconds=settings.result_cache_seconds,
            precision=engine.encoder.runtime.label,
        )

    def start(self) -> None:
        """Start all parts."""
        self._loop = asyncio.get_running_loop()
        notice = self.engine.demo_notice()
        if notice:
            logger.warning("%s", notice)
        self.redis.start()
        self.compute_queue.start()
        self.thumbnails.start()
        self.sprites.start()
        self.previews.start()
        self.watcher.start()
        if self.place.leads:
            self._lead()

    def _lead(self) -> None:
        """Start what only one process of a store may do."""
        if not self.place.is_alone:
            changes = ChangeCounter(self.place.shared(CHANGES))
            self.engine.live.on_exchange = changes.increase
            changes.increase()  # what an earlier leader committed and did not count
        self.jobs.start()
        self.library.additions.start()
        self.engine_applier.start()
        self.folder_watch.start()
        self.webhooks.start()
        with self.engine.live.lease() as generation:
            if not generation.reader.has_words:
                self.library.migrate().add_done_callback(_report_migration)

    async def close(self, *, keep_jobs: bool = False) -> None:
        """Stop all parts, wait for the batch being computed, and close the index; with ``keep_jobs``, jobs go on."""
        await asyncio.to_thread(self.folder_watch.close)
        await asyncio.to_thread(self.library.close)  # it computes until it has stopped
        await asyncio.to_thread(self.watcher.close)
        await asyncio.to_thread(self.engine_applier.close)
        await asyncio.to_thread(self.webhooks.close)
        await asyncio.gather(
            self.compute_queue.close(),
            self.thumbnails.close(),
            self.sprites.close(),
            self.previews.close(),
            self.shared.close(),
        )
        await self.redis.close()
        await asyncio.to_thread(self.query_log.write)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.fork_server.close)
        if not keep_jobs:
            await asyncio.to_thread(self.jobs.close)
        self.engine.close()

    @property
    def background(self) -> list[Background]:
        """The state of background work."""
        additions, writer = self.library.additions, self.library.writer
        works = [additions.background, writer.background, writer.publisher, self.redis.background]
        if self.settings.engine is not None:
            works.append(self.engine_applier.background)
        if self.folder_watch.folders:
            works.append(self.folder_watch.background)
        if self.webhooks.urls:
            works.append(self.webhooks.background)
        return works

    @property
    def queues(self) -> dict[str, Batcher[Any, Any]]:
        """All queues that requests wait in, by name."""
        return {
            **self.compute_queue.queues,
            "thumbnail": self.thumbnails.batcher,
            "sprite": self.sprites.batcher,
            "preview": self.previews.batcher,
        }

    async def search(self, queries: Sequence[SearchQuery]) -> list[SearchResult]:
        """The results of queries, from the caches or computed.

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
            self._log(unknown)
        else:
            computed = []
        fresh = iter(computed)
        return [
            next(fresh) if result is None else replace(result, source=replace(result.source, stage_seconds=known))
            for result in found
        ]

    def _log(self, queries: Sequence[SearchQuery]) -> None:
        """Keep the embeddings of text queries, if the operator wants that."""
        texts, fingerprint = self.engine.texts, self.engine.encoder.fingerprint
        rows = [texts.get((fingerprint, query.text)) for query in queries if query.text is not None]
        if self.query_log.add(row_D for row_D in rows if row_D is not None):
            self._decoders.submit(self.query_log.write)

    async def probe(self) -> SearchResult:
        """One query through every stage, ahead of all queued ones: the readiness check."""
        return await self.compute_queue.once(self.engine.probe)

    async def compute(self, call: Callable[[], T]) -> T:
        """Run a call of the engine when its turn comes. Raises ``Overloaded`` if too many wait."""
        return cast(T, await self.compute_queue.calls.submit(call))

    def _compute_in_a_thread(self, call: Callable[[], T]) -> T:
        """``compute`` for threads outside the event loop."""
        return asyncio.run_coroutine_threadsafe(self.compute(call), self._loop).result()

    async def compute_on_texts(self, texts: Sequence[str], call: Callable[[], T]) -> T:
        """``compute`` for a call that embeds ``texts``: embeddings that other processes computed are fetched first."""
        await self.shared.look_up_texts(texts)
        missing = self.shared.missing(texts)
        result = await self.compute(call)
        self.shared.keep_texts(missing)
        return result

    async def decode_still(self, file: IO[bytes]) -> UploadedFrames:
        """Decode an uploaded picture in the sandbox, as ``decode`` does a video."""
        preprocess, sampling = self.engine.encoder.preprocess, self.engine.sampling
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._decoders, lambda: self.sandbox.still(file, sampling=sampling, preprocess=preprocess)
        )

    async def decode(self, file: IO[bytes]) -> UploadedFrames:
        """Decode an upload in the sandbox, killed if cancelled; at most ``upload_workers`` at once."""
        preprocess, kill_switch = self.engine.encoder.preprocess, KillSwitch()
        sampling = self.engine.sampling
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._decoders,
                lambda: self.sandbox.decode(file, sampling=sampling, preprocess=preprocess, kill_switch=kill_switch),
            )
        except asyncio.CancelledError:
            kill_switch.activate()
            raise


def _report_migration(done: Future[None]) -> None:
    if (error := done.exception()) is not None:
        logger.warning(
            "this store cannot be searched by words before it is written to, and that failed: %s; run `emcl index "
            "build` on it once",
            error,
        )


async def _services(request: Request) -> AsyncIterator[Services]:
    services: Services = request.app.state.services  # the same for the whole request, whatever is served meanwhile
    services.requests += 1
    try:
        yield services
    finally:
        services.requests -= 1


ServicesDep = Annotated[Services, Depends(_services)]
