"""Cancel the work for a request when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")

_WATCHED_AFTER_SECONDS = 0.02


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``, which is cancelled if the client disconnects first.

    Requests answered within ``_WATCHED_AFTER_SECONDS`` are not watched: the task for it costs more than it saves.

    Raises:
        ClientDisconnect: the client disconnected; ``work`` was cancelled.
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
        raise  # the task was also cancelled by someone else
    finally:
        begin.cancel()
        watch.end()
        if watch.has_cancelled:
            task.uncancel()


class _Watch:
    """Cancels ``task`` when the client of ``request`` disconnects between ``begin`` and ``end``."""

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
