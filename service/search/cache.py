"""A bounded cache inside the process: least recently used goes first.

Holds text embeddings (keyed by the model's fingerprint and the text, so that another model can never be answered with
them) and thumbnails. Safe to use from several threads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """At most ``capacity`` units, counted by ``weigh`` (default: each entry is 1). Capacity 0 keeps nothing.

    ``hits`` and ``misses`` count calls of ``get``.
    """

    def __init__(self, capacity: int, weigh: Callable[[Value], int] = lambda value: 1) -> None:
        self.capacity = capacity
        self._weigh = weigh
        self._used = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The value, which becomes the most recently used, or ``None``."""
        with self._lock:
            if key in self._entries:
                self.hits += 1
                self._entries.move_to_end(key)
            else:
                self.misses += 1
            return self._entries.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep a value; one that alone is over the capacity is not kept."""
        weight = self._weigh(value)
        with self._lock:
            self._remove(key)
            if weight > self.capacity:
                return
            self._entries[key] = value
            self._used += weight
            while self._used > self.capacity:
                self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._used = 0

    def _remove(self, key: Key) -> None:
        if key in self._entries:
            self._used -= self._weigh(self._entries.pop(key))
