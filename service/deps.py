"""What routes work with: the engine behind its batcher, uploads, pictures. Built once, handed to the application.

Everything that computes runs in one bounded executor: queries through a batcher that gathers them, all else (uploads,
single stages, the ready check) through one that takes calls one by one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from service.batching import Batcher
from service.engine import Engine
from service.fence import Fence, FenceLimits, UploadedFrames
from service.media import Thumbnails
from service.query import QueryLimits, SearchQuery, SearchResult
from service.settings import Settings
from service.uploads import UploadReceiver

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Services:
    """All parts of a running service. Start it inside a running event loop, and close it before the loop ends."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        self.fence = Fence(fence_limits(settings))
        self.receiver = UploadReceiver(
            max_bytes=settings.upload_max_bytes,
            slots=settings.upload_slots,
            timeout_seconds=settings.upload_timeout_seconds,
            folder=settings.upload_folder,
        )
        self.thumbnails = Thumbnails(
            width=settings.thumbnail_width, cache_bytes=settings.thumbnail_cache_bytes, max_queue=settings.max_queue
        )
        self._compute = ThreadPoolExecutor(
            1, thread_name_prefix="compute", initializer=limit_threads, initargs=(settings,)
        )
        self._decoders = ThreadPoolExecutor(settings.upload_workers, thread_name_prefix="decode")
        self.searches: Batcher[SearchQuery, SearchResult] = Batcher(
            engine.search,
            executor=self._compute,
            max_batch=settings.max_batch,
            max_wait_seconds=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            name="search",
        )
        self._calls: Batcher[Callable[[], Any], Any] = Batcher(
            lambda calls: [call() for call in calls],
            executor=self._compute,
            max_batch=1,
            max_wait_seconds=0,
            max_queue=settings.max_queue,
            name="compute",
        )

    def start(self) -> None:
        """Begin to take work."""
        self.searches.start()
        self._calls.start()
        self.thumbnails.start()

    async def close(self) -> None:
        """Stop taking work, let what is being computed end, and close the index."""
        await asyncio.gather(self.searches.close(), self._calls.close(), self.thumbnails.close())
        self._decoders.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._compute.shutdown)
        self.engine.close()

    async def compute(self, call: Callable[[], T]) -> T:
        """Run a call of the engine when its turn comes. Raises ``Overloaded`` if too many wait."""
        return cast(T, await self._calls.submit(call))

    async def decode(self, file: IO[bytes]) -> UploadedFrames:
        """Decode an upload in a fenced process; at most ``upload_workers`` at once."""
        encoder = self.engine.encoder
        sampling, size = self.engine.sampling, encoder.image_size
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._decoders, lambda: self.fence.decode(file, sampling=sampling, image_size=size)
        )


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


def query_limits(settings: Settings) -> QueryLimits:
    """The limits of one query, of the settings."""
    return QueryLimits(
        max_texts=settings.max_texts, max_text_chars=settings.max_text_chars, max_candidates=settings.max_candidates
    )


def limit_threads(settings: Settings) -> None:
    """Set how many threads one batch may use. FAISS counts for the calling thread alone: call it where it computes."""
    import torch

    from indexer.ann import set_threads

    torch.set_num_threads(settings.threads)
    set_threads(settings.faiss_threads)


def build_engine(settings: Settings) -> Engine:
    """Open the store and load the model that it was built with, or the one that the settings name.

    Raises ``ValueError`` if there is no store, no such model, or if they do not belong together.
    """
    from indexer.store import StoreReader
    from model.encoder import load_encoder

    limit_threads(settings)
    with StoreReader.open(settings.store) as reader:
        spec = reader.manifest.model_spec
    named = settings.model is not None
    encoder = load_encoder(
        settings.model if named else spec.model,
        pretrained=settings.pretrained if named else settings.pretrained or spec.pretrained,
        device=settings.device,
        precision=settings.precision,
    )
    logger.info("model %s, fingerprint %s", encoder.config.name, encoder.fingerprint[:12])
    return Engine(
        encoder,
        lambda: StoreReader.open(settings.store, fingerprint=encoder.fingerprint),
        limits=query_limits(settings),
        cache_entries=settings.cache_entries,
    )


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled if the client goes away first. Raises ``ClientDisconnect`` then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for waiting in (task, gone):
            waiting.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
