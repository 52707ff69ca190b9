"""Dynamic batching: queries that arrive together are computed together.

In: single items from any number of coroutines. Out: each item's own result. The first item of a batch waits
``max_wait_seconds`` for others; while a batch is being computed the next one gathers. The queue is bounded: when it is
full, ``submit`` raises ``Overloaded`` at once. An item whose caller was cancelled while it waited is never computed.

The work itself is synchronous and runs in an executor whose threads bound how much is computed at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.errors import Overloaded

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)  # compared by identity: two callers may ask the same
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Gathers items for ``run``, which takes a list of items and returns as many results in the same order.

    Start it inside a running event loop, and close it before the loop ends.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        *,
        executor: Executor,
        max_batch: int,
        max_wait_seconds: float,
        max_queue: int,
        name: str,
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_batch = max_batch
        self._max_wait_seconds = max_wait_seconds
        self._max_queue = max_queue
        self._name = name
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._batch_seconds = 0.0  # how long batches took lately, for Retry-After

    @property
    def queue_depth(self) -> int:
        """How many items wait; those that are being computed do not count."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to take batches from the queue."""
        assert self._worker is None, "a batcher is started once"
        self._worker = asyncio.get_running_loop().create_task(self._work(), name=f"batcher {self._name}")

    async def close(self) -> None:
        """Stop; whoever still waits for a result gets ``Overloaded``."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        while self._waiting:
            _settle(self._waiting.popleft().future, error=self._overloaded("the service is shutting down"))

    async def submit(self, item: Item) -> Result:
        """Queue one item and wait for its result.

        Raises ``Overloaded`` if ``max_queue`` items wait already, and whatever ``run`` raises for this item.
        """
        return (await self.submit_all([item]))[0]

    async def submit_all(self, items: Sequence[Item]) -> list[Result]:
        """Queue several items, all or none, and wait for all results; the first error is raised and drops the rest."""
        if len(self._waiting) + len(items) > self._max_queue:
            raise self._overloaded(f"{len(self._waiting)} {self._name} requests wait already")
        loop = asyncio.get_running_loop()
        batch = [_Waiting[Item, Result](item, loop.create_future()) for item in items]
        self._waiting.extend(batch)
        self._arrived.set()
        try:
            return await asyncio.gather(*(waiting.future for waiting in batch))
        finally:
            for waiting in batch:
                waiting.future.cancel()  # nothing if its result came
                if waiting.future.cancelled() and waiting in self._waiting:
                    self._waiting.remove(waiting)  # its place in the queue is free

    def _overloaded(self, detail: str) -> Overloaded:
        batches = math.ceil((len(self._waiting) + 1) / self._max_batch)
        return Overloaded(
            detail,
            expected=f"at most {self._max_queue} waiting",
            next_step="try again after the seconds in Retry-After",
            retry_after_seconds=math.ceil(batches * self._batch_seconds),
        )

    async def _work(self) -> None:
        while True:
            await self._gather()
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            if batch:
                await self._compute(batch)

    async def _gather(self) -> None:
        """Return when a batch is worth taking: it is full, or its first item has waited long enough."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._max_wait_seconds
        while len(self._waiting) < self._max_batch and (left := deadline - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    async def _compute(self, batch: list[_Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            results = await loop.run_in_executor(self._executor, self._run, [waiting.item for waiting in batch])
            assert len(results) == len(batch), f"{self._name}: {len(batch)} items gave {len(results)} results"
        except asyncio.CancelledError:
            for waiting in batch:
                _settle(waiting.future, error=self._overloaded("the service is shutting down"))
            raise
        except Exception as error:
            await self._isolate(batch, error)
        else:
            for waiting, result in zip(batch, results, strict=True):
                _settle(waiting.future, result=result)
        self._batch_seconds = 0.8 * self._batch_seconds + 0.2 * (loop.time() - started)

    async def _isolate(self, batch: list[_Waiting[Item, Result]], error: Exception) -> None:
        """Compute a failed batch again one by one, so that an error reaches only the caller who caused it."""
        if len(batch) == 1:
            _settle(batch[0].future, error=error)
            return
        logger.info("a %s batch of %d failed and is computed one by one: %s", self._name, len(batch), error)
        for waiting in batch:
            if not waiting.future.done():
                await self._compute([waiting])


def _settle(future: asyncio.Future[Result], *, result: Result | None = None, error: Exception | None = None) -> None:
    """Give a future its outcome unless its caller is gone."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]  # a Result may itself be None
