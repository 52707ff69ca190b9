"""The generation of the index that is being served, and its exchange for a newer one without a failed query.

A query holds a lease of the generation that it began with; a reload opens the new one first, then new queries get it,
and the old one is closed when its last lease ends. If the new one cannot be opened, the old one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from service.cache import LRUCache
from service.errors import NotFound

if TYPE_CHECKING:
    from indexer.records import Video
    from indexer.store import StoreReader

_CARDS_KEPT = 20_000  # about 500 bytes each


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCard:
    """What a hit says about its video. ``title`` is the name of its file without the ending."""

    title: str
    duration_seconds: float
    tags: tuple[str, ...]


class Generation:
    """An open generation, with the number of queries that use it."""

    def __init__(self, reader: StoreReader) -> None:
        self.reader = reader
        self.leases = 0
        self.retired = False
        self._cards: LRUCache[str, VideoCard] = LRUCache(_CARDS_KEPT)

    def video(self, video_id: str) -> Video:
        """One video of this generation. Raises ``NotFound``."""
        video = self.reader.video(video_id)
        if video is None:
            raise NotFound(
                f"this index has no video {video_id[:80]!r}",
                expected="the id of an indexed video, 64 hexadecimal digits",
                next_step="list the videos with GET /v1/videos",
            )
        return video

    def card(self, video_id: str) -> VideoCard:
        """The card of an indexed video; kept, because popular videos are hits again and again."""
        card = self._cards.get(video_id)
        if card is None:
            video = self.video(video_id)
            assert video.duration_seconds is not None, "an indexed video has a duration"
            title = Path(video.path).stem if video.path else video_id[:12]
            card = VideoCard(title=title, duration_seconds=video.duration_seconds, tags=video.tags)
            self._cards.put(video_id, card)
        return card


class LiveIndex:
    """Opens generations with ``open_reader`` and lends out the current one. Safe to use from several threads."""

    def __init__(self, open_reader: Callable[[], StoreReader]) -> None:
        self._open = open_reader
        self._lock = Lock()
        self._reloading = Lock()
        self._current = Generation(open_reader())

    @contextmanager
    def lease(self) -> Iterator[Generation]:
        """The current generation, which stays open until the context ends."""
        with self._lock:
            generation = self._current
            generation.leases += 1
        try:
            yield generation
        finally:
            with self._lock:
                generation.leases -= 1
                unused = generation.retired and generation.leases == 0
            if unused:
                generation.reader.close()

    def reload(self) -> None:
        """Serve the newest generation. Raises what opening it raises; the present one is served on then."""
        with self._reloading:
            generation = Generation(self._open())
            with self._lock:
                old, self._current = self._current, generation
            self._retire(old)

    def close(self) -> None:
        """Close the index once the last lease has ended."""
        self._retire(self._current)

    def _retire(self, generation: Generation) -> None:
        with self._lock:
            generation.retired = True
            unused = generation.leases == 0
        if unused:
            generation.reader.close()
