"""Observations of histograms that are kept for a while, and then told all at once.

What a search computes fills the processor's caches, so in its midst the code and the numbers of histograms have to be
fetched from memory: telling the eight observations of one search took a hundredth of it. Many in a row take less each,
and only each eighth search pays for them.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

_MOST_KEPT = 64


class Observing(Protocol):
    """A histogram, or one of its children."""

    def observe(self, amount: float, /) -> None:
        """Count one value."""


class Tally:
    """Any thread may add to it, and tell what was added."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Observing, float]] = deque()
        self._telling = threading.Lock()

    def add(self, histogram: Observing, value: float) -> None:
        """Have ``histogram`` observe ``value``, at the latest when somebody asks ``tell``."""
        self._kept.append((histogram, value))
        if len(self._kept) >= _MOST_KEPT:
            self.tell()

    def tell(self) -> None:
        """Return when everything that was added before is observed."""
        with self._telling:
            while self._kept:
                histogram, value = self._kept.popleft()
                histogram.observe(value)
