"""Background work of the service that survives its own failures. Imports nothing of the package.

A thread or task that ends with an exception ends silently: whatever waits for its result waits forever. All of them
run their steps through ``Background``: any exception is logged, counted, shown by ``/health/ready`` and ``/metrics``,
and the step is tried again, after a pause that grows with each failure in a row.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 30.0


class Background:
    """The state of one kind of background work.

    ``failures`` counts exceptions; ``trouble`` is the last one while the work has not succeeded since, else None.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failures = 0
        self.trouble: str | None = None
        self._in_a_row = 0

    def succeeded(self) -> None:
        """A step was completed."""
        self.trouble = None
        self._in_a_row = 0

    def failed(self, error: BaseException) -> float:
        """Log and count an exception; returns the seconds to wait before the next attempt."""
        self.failures += 1
        reason = f"{type(error).__name__}: {error}"[:500]
        if reason != self.trouble:  # the same one again is counted, not logged again
            logger.error("%s failed and is tried again: %s", self.name, reason, exc_info=error)
        self.trouble = reason
        pause = FIRST_PAUSE_SECONDS * 2.0 ** min(self._in_a_row, 20)
        self._in_a_row += 1
        return min(pause, LONGEST_PAUSE_SECONDS)

    def attempt(self, step: Callable[[], None], wait: Callable[[float], object]) -> None:
        """Run one step in a thread; after an exception, wait."""
        try:
            step()
        except Exception as error:
            wait(self.failed(error))
        else:
            self.succeeded()

    async def attempt_async(
        self, step: Callable[[], Awaitable[None]], wait: Callable[[float], Awaitable[None]]
    ) -> None:
        """Run one step in a task; after an exception, wait. Cancellation passes."""
        try:
            await step()
        except Exception as error:
            await wait(self.failed(error))
        else:
            self.succeeded()
