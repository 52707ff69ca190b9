"""The view of the index that is being served, and its exchange for a newer one without a failed query.

A view is a generation with everything committed since (``indexer.store.reader``). A query holds a lease of the view
that it began with; a newer one is opened first, then new queries get it, and the old one is closed when its last lease
ends. If the new one cannot be opened, the old one stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

from indexer.store.demo_notice import demo_notice
from service.errors import NotFound
from service.search.cache import LRUCache
from service.search.qb_norm import BankCache, bank_name

if TYPE_CHECKING:
    from indexer.errors import Damaged
    from indexer.library import Library
    from indexer.store.query_bank import StoredBank
    from indexer.store.records import Video

logger = logging.getLogger(__name__)

_CARDS_KEPT = 20_000  # about 500 bytes each


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCard:
    """What a hit says about its video. ``title``: what it was called, else its file's name without ending.

    ``path`` is the first place where it was found, None if none is recorded.
    """

    title: str
    path: str | None
    duration_seconds: float
    tags: tuple[str, ...]


class Generation:
    """An open view of the index, with the number of queries that use it.

    ``version`` changes whenever anything does that a search can answer.
    """

    def __init__(self, reader: Library, bank: StoredBank | Damaged | None) -> None:
        self.reader = reader
        self.bank = bank
        self.version = reader.version + bank_name(self.bank)
        self.leases = 0
        self.retired = False
        self._cards: LRUCache[str, VideoCard] = LRUCache(_CARDS_KEPT)

    @cached_property
    def demo_notice(self) -> str | None:
        """A warning if the demo model serves videos other than its own, else None."""
        return demo_notice(self.reader)

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
        """The card of an indexed video; kept, because popular videos are hits of many queries."""
        card = self._cards.get(video_id)
        if card is None:
            video = self.video(video_id)
            assert video.duration_seconds is not None, "an indexed video has a duration"
            card = VideoCard(
                title=video.title, path=video.path, duration_seconds=video.duration_seconds, tags=video.tags
            )
            self._cards.put(video_id, card)
        return card


class LiveIndex:
    """Opens generations with ``open_reader`` and lends out the current one. Safe to use from several threads.

    ``on_exchange`` is called whenever a newer view is served.
    """

    def __init__(self, open_reader: Callable[[], Library]) -> None:
        self.on_exchange: Callable[[], None] | None = None
        self._open = open_reader
        self._lock = Lock()
        self._reloading = Lock()
        self._banks = BankCache()
        self._current = self._generation(open_reader())

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
            self._exchange(self._open())

    def refresh(self) -> bool:
        """Serve everything that is committed by now; whether that was anything new. Raises as ``reload`` does.

        When it returns, every later query sees what was committed before it was called, whichever process wrote it.
        """
        with self._reloading, self.lease() as current:
            reader = current.reader.refreshed()
            if reader is None:
                return False
            if reader.manifest.generation != current.reader.manifest.generation:
                logger.info("generation %s is served now", reader.manifest.generation)
            self._exchange(reader)
            return True

    def close(self) -> None:
        """Close the index once the last lease has ended."""
        self._retire(self._current)

    def _exchange(self, reader: Library) -> None:
        generation = self._generation(reader)
        with self._lock:
            old, self._current = self._current, generation
        if self.on_exchange is not None:
            self.on_exchange()
        if generation.demo_notice and not old.demo_notice:
            logger.warning("%s", generation.demo_notice)
        self._retire(old)

    def _generation(self, reader: Library) -> Generation:
        return Generation(reader, self._banks.bank_of(reader.path))

    def _retire(self, generation: Generation) -> None:
        with self._lock:
            generation.retired = True
            unused = generation.leases == 0
        if unused:
            generation.reader.close()


class Watcher:
    """Checks every ``seconds`` for changes that other processes published or committed, and serves them.

    ``trouble`` is why the last check failed, or None; then the former view is still served.
    """

    def __init__(self, live: LiveIndex, seconds: float) -> None:
        self.trouble: str | None = None
        self._live = live
        self._seconds = seconds
        self._stop = Event()
        self._thread = Thread(target=self._watch, name="index watcher", daemon=True)

    def start(self) -> None:
        """Start checking; never with 0 seconds."""
        if self._seconds > 0:
            self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._live.refresh()
            except Exception as error:  # of whatever kind: the next check may succeed
                if str(error) != self.trouble:  # logged once, not every few seconds
                    logger.warning("the newest state of the index cannot be served: %s", error)
                self.trouble = str(error)
            else:
                self.trouble = None
