"""The compute queue: three queues before the one thread that computes.

Searches are gathered into batches. Other calls of the engine (uploads, single stages) are taken one by one. Urgent ones
(the readiness check, requests of operators) have a queue of their own, so that they wait for the batch being computed,
never for queued ones: the three take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar, cast

from service.search.batching import Batcher
from service.settings import Settings

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

_MAX_URGENT = 32


class ComputeQueue(Generic[Item, Result]):
    """Runs ``search`` on batches, and single calls, in one thread that ``prepare_thread`` sets up.

    Start it inside a running event loop, and close it before the loop ends.
    """

    def __init__(
        self,
        search: Callable[[list[Item]], Sequence[Result]],
        settings: Settings,
        prepare_thread: Callable[[], None],
    ) -> None:
        self._prepare_thread = prepare_thread
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._turn = asyncio.Lock()
        timeout_seconds = settings.query_timeout_ms / 1000
        self.searches: Batcher[Item, Result] = Batcher(
            search,
            executor=self._executor,
            max_batch=settings.max_batch,
            max_wait_seconds=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            name="search",
            timeout_seconds=timeout_seconds,
            turn=self._turn,
        )
        self.calls = self._one_by_one("compute", settings.max_queue, timeout_seconds)
        self.urgent = self._one_by_one("urgent", _MAX_URGENT, timeout_seconds)
        self._ready: asyncio.Future[Any] | None = None

    def _one_by_one(self, name: str, max_queue: int, timeout_seconds: float) -> Batcher[Callable[[], Any], Any]:
        return Batcher(
            lambda calls: [call() for call in calls],
            executor=self._executor,
            max_batch=1,
            max_wait_seconds=0,
            max_queue=max_queue,
            name=name,
            timeout_seconds=timeout_seconds,
            turn=self._turn,
        )

    @property
    def queues(self) -> dict[str, Batcher[Any, Any]]:
        """The three queues by name."""
        return {"search": self.searches, "compute": self.calls, "urgent": self.urgent}

    def start(self) -> None:
        """Start the thread and the queues. Raises what preparing the thread raises."""
        self._executor.submit(self._prepare_thread).result()
        for queue in self.queues.values():
            queue.start()

    async def close(self) -> None:
        """Stop the queues, and wait for the batch being computed."""
        await asyncio.gather(*(queue.close() for queue in self.queues.values()))
        await asyncio.to_thread(self._executor.shutdown)

    async def once(self, call: Callable[[], T]) -> T:
        """Run an urgent call with the same result for all callers; callers that come while it runs share its result.

        So the readiness check, which needs no key, cannot be used to keep the thread busy.
        """
        if self._ready is None or self._ready.done():
            self._ready = asyncio.ensure_future(self.urgent.submit(call))
            self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())  # its callers may be gone
        return cast(T, await asyncio.shield(self._ready))
