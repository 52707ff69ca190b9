"""Dynamic batching: queries that arrive together are computed together.

In: single items from any number of coroutines. Out: each item's own result. While a batch is being computed the next
one gathers. An item that comes while nothing is computed starts at once if the batch before it was of one item: a lone
query is never delayed. Otherwise others are likely to be on their way, and it waits for as many as there were then, at
most ``max_wait_seconds``. The queue is bounded: when it is full, ``submit`` raises ``Overloaded`` at once. An item
whose caller was cancelled while it waited is never computed, nor is one that has waited ``timeout_seconds``: its caller
gets ``Overloaded`` at that moment.

The work itself is synchronous and runs in an executor whose threads bound how much is computed at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Generic, TypeVar

from service.errors import Overloaded

logger = logging.getLogger(__name__)

_TIMER_SLACK_SECONDS = 0.001  # a timer may fire a little early

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)  # compared by identity: two callers may ask the same
class _Waiting(Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    deadline: float


class Batcher(Generic[Item, Result]):
    """Gathers items for ``run``, which takes a list of items and returns as many results in the same order.

    Batchers that share a thread share a ``turn``: each takes its batch when the thread is free for it, so that what
    waits stays in its queue, where it can expire and be cancelled, and they take turns.

    Start it inside a running event loop, and close it before the loop ends. The counters only grow: ``batches`` and
    ``items`` were computed, ``rejected`` items found the queue full, ``expired`` ones waited too long, and the callers
    of ``cancelled`` ones left while they waited.
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
        timeout_seconds: float = math.inf,
        turn: asyncio.Lock | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        self.max_batch = max_batch
        self._max_wait_seconds = max_wait_seconds
        self.max_queue = max_queue
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._turn = turn or asyncio.Lock()
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None  # when the item that waits longest is to be dropped
        self._batch_seconds = 0.0  # how long batches took lately, for Retry-After
        self._expected = 1  # how many the last batch was of, and so how many may come together again
        self.batches = 0
        self.items = 0
        self.rejected = 0
        self.expired = 0
        self.cancelled = 0

    @property
    def queue_depth(self) -> int:
        """How many items wait; those that are being computed do not count."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether not one item more may wait."""
        return len(self._waiting) >= self.max_queue

    @property
    def retry_after_seconds(self) -> int:
        """How long what waits now will take, as batches went lately; at least 1."""
        batches = math.ceil((len(self._waiting) + 1) / self.max_batch)
        return max(1, math.ceil(batches * self._batch_seconds))

    def start(self) -> None:
        """Begin to take batches from the queue."""
        assert self._worker is None, "a batcher is started once"
        self._worker = asyncio.get_running_loop().create_task(self._work(), name=f"batcher {self._name}")

    async def close(self) -> None:
        """Stop; callers that still wait for a result get ``Overloaded``."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        if self.expiry is not None:
            self.expiry.cancel()
        while self._waiting:
            _settle(self._waiting.popleft().future, error=self._overloaded("the service is shutting down"))

    async def submit(self, item: Item) -> Result:
        """Queue one item and wait for its result.

        Raises ``Overloaded`` if ``max_queue`` items wait already or its turn does not come within the timeout, and
        whatever ``run`` raises for this item.
        """
        return (await self.submit_all([item]))[0]

    async def submit_all(self, items: Sequence[Item]) -> list[Result]:
        """Queue several items, all or none, and wait for all results; the first error is raised and drops the rest."""
        if len(self._waiting) + len(items) > self.max_queue:
            self.rejected += len(items)
            raise self._overloaded(f"{len(self._waiting)} {self._name} requests wait already")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_seconds
        batch = [_Waiting[Item, Result](item, loop.create_future(), deadline) for item in items]
        self._waiting.extend(batch)
        self._arrived.set()
        self._watch_deadlines()
        try:
            if len(batch) == 1:
                return [await batch[0].future]  # gathering one would take the loop another round
            return await asyncio.gather(*(waiting.future for waiting in batch))
        finally:
            for waiting in batch:
                waiting.future.cancel()  # nothing if its result came
                if waiting.future.cancelled() and waiting in self._waiting:
                    self._waiting.remove(waiting)  # its place in the queue is free
                    self.cancelled += 1

    def _overloaded(self, detail: str) -> Overloaded:
        return Overloaded(
            detail,
            expected=f"at most {self.max_queue} waiting",
            next_step="try again after the seconds in Retry-After",
            retry_after_seconds=self.retry_after_seconds,
        )

    def _watch_deadlines(self) -> None:
        """Wake up when the first has waited too long. All may wait equally long, so it is always the next to expire."""
        if self.expiry is None and self._waiting and self._timeout_seconds < math.inf:
            self.expiry = asyncio.get_running_loop().call_at(self._waiting[0].deadline, self._wake_up)

    def _wake_up(self) -> None:
        self.expiry = None
        self._drop_expired()
        self._watch_deadlines()

    def _drop_expired(self) -> None:
        now = asyncio.get_running_loop().time() + _TIMER_SLACK_SECONDS
        while self._waiting and self._waiting[0].deadline <= now:
            self.expired += 1
            error = self._overloaded(f"the request waited {self._timeout_seconds:g} seconds and was not computed")
            _settle(self._waiting.popleft().future, error=error)

    async def _work(self) -> None:
        while True:
            await self._gather()
            async with self._turn:
                self._drop_expired()
                batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
                if batch:
                    self._expected = len(batch)
                    self.batches += 1
                    self.items += len(batch)
                    await self._compute(batch)

    async def _gather(self) -> None:
        """Return when a batch is worth taking: as many wait as were computed together last, or the wait is over."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._max_wait_seconds
        while len(self._waiting) < self._expected and (left := deadline - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    async def _compute(self, batch: list[_Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        started = perf_counter()  # a loop's clock may stand still while it turns
        ended = loop.create_future()
        try:
            self._executor.submit(self._run_in_thread, batch, ended, loop)
            error = await ended
        except Exception as error:  # the system gives no more threads, say; whatever it is, its callers wait for it
            for waiting in batch:
                _settle(waiting.future, error=error)
            return
        except asyncio.CancelledError:
            for waiting in batch:
                _settle(waiting.future, error=self._overloaded("the service is shutting down"))
            raise
        if error is not None:
            await self._isolate(batch, error)
        self._batch_seconds = 0.8 * self._batch_seconds + 0.2 * (perf_counter() - started)

    def _run_in_thread(
        self,
        batch: list[_Waiting[Item, Result]],
        ended: asyncio.Future[BaseException | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Compute a batch. One callback on the loop settles all its futures."""
        try:
            results = self._run([waiting.item for waiting in batch])
            assert len(results) == len(batch), f"{self._name}: {len(batch)} items gave {len(results)} results"
        except BaseException as error:  # whatever it is, somebody waits for an outcome
            settle = partial(_settle, ended, result=error)
        else:
            settle = partial(_settle_all, batch, results, ended)
        with suppress(RuntimeError):  # the loop has ended, and its callers with it
            loop.call_soon_threadsafe(settle)

    async def _isolate(self, batch: list[_Waiting[Item, Result]], error: BaseException) -> None:
        """Compute a failed batch again one by one, so that an error reaches only the caller that caused it."""
        if len(batch) == 1:
            _settle(batch[0].future, error=error)
            return
        logger.info("a %s batch of %d failed and is computed one by one: %s", self._name, len(batch), error)
        for waiting in batch:
            if not waiting.future.done():
                await self._compute([waiting])


def _settle_all(
    batch: list[_Waiting[Item, Result]], results: Sequence[Result], ended: asyncio.Future[BaseException | None]
) -> None:
    for waiting, result in zip(batch, results, strict=True):
        _settle(waiting.future, result=result)
    _settle(ended, result=None)


def _settle(
    future: asyncio.Future[Result], *, result: Result | None = None, error: BaseException | None = None
) -> None:
    """Give a future its outcome unless its caller is gone."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]  # a Result may itself be None
