"""A bounded least-recently-used cache for several threads, with counters: ``cachetools`` behind a lock.

Holds text embeddings (keyed by the model's fingerprint and the text, so that a model never gets another's), results and
thumbnails.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import cachetools

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """At most ``capacity`` units, counted by ``weigh`` (default: each entry is 1). Capacity 0 keeps nothing.

    ``hits`` and ``misses`` count calls of ``get``.
    """

    def __init__(self, capacity: int, weigh: Callable[[Value], int] = lambda value: 1) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._entries: cachetools.LRUCache[Key, Value] = cachetools.LRUCache(capacity, getsizeof=weigh)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The value, which becomes the most recently used, or ``None``."""
        with self._lock:
            value = self._entries.get(key)
            if value is None:
                self.misses += 1
            else:
                self.hits += 1
            return value

    def put(self, key: Key, value: Value) -> None:
        """Keep a value; one that alone is over the capacity is not kept."""
        with self._lock:
            self._entries.pop(key, None)
            if self._entries.getsizeof(value) <= self.capacity:
                self._entries[key] = value

    def clear(self) -> None:
        """Forget all entries; the counters stay."""
        with self._lock:
            self._entries.clear()
