"""The one thread of a service that writes to its store: all changes happen here, one after the other.

In: functions of an open ``StoreWriter``, from any thread. Out: their results as futures, set when what they committed
is durable *and* is being served. The store's lock is held only while there is something to do, so that ``emcl index``
and index jobs get their turn; while they hold it, work is refused, naming the holder.

When the overlay has grown over its bound, a new generation is published in a second thread. It reads the catalogue
through a connection of its own while this thread goes on writing; what is written meanwhile is its overlay.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from indexer.errors import StoreError, StoreLocked
from service import errors
from service.background import Background
from service.errors import Overloaded, ServiceError

if TYPE_CHECKING:
    from indexer.store.config import StoreSettings
    from indexer.store.generation import RowMapper
    from indexer.store.writer import StoreWriter
    from service.search.live_index import LiveIndex

logger = logging.getLogger(__name__)

T = TypeVar("T")

LINGER_SECONDS = 0.1
"""How long the lock is kept for a next change, so that many small ones open the store once."""

RETRY_SECONDS = 5


@dataclass(frozen=True, eq=False)
class _Order:
    work: Callable[[StoreWriter], Any]
    future: Future[Any]


class LibraryWriter:
    """Writes to the store in ``path`` and has ``live`` serve what was written.

    ``overlay_rows`` is the bound over which a generation is published by ``mapper``; 0 never does. ``publications`` and
    ``failures`` count those.
    """

    def __init__(self, path: Path, live: LiveIndex, mapper: RowMapper, *, overlay_rows: int) -> None:
        self.publications = 0
        self.failures = 0
        self._path = path
        self._live = live
        self._mapper = mapper
        self._overlay_rows = overlay_rows
        self.background = Background("library writer")
        self.publisher = Background("library publisher")
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="library writer", daemon=True)
        self._publishing: threading.Thread | None = None
        self._writer: StoreWriter | None = None
        self._start = threading.Lock()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Changes that are queued."""
        return self._orders.qsize()

    @property
    def publishing(self) -> bool:
        """Whether a generation is being published in the background."""
        return self._publishing is not None

    def run(self, work: Callable[[StoreWriter], T]) -> Future[T]:
        """Run ``work``; its result, or what it raised, once everything that it committed is being served.

        ``Overloaded`` if another process writes to the store.
        """
        future: Future[T] = Future()
        with self._start:
            if self._closed:
                future.set_exception(_closing())
                return future
            if self._thread.ident is None:
                self._thread.start()
            self._orders.put(_Order(work, future))
        return future

    def close(self) -> None:
        """Finish the queued changes, wait for a publication under way, and release the store."""
        with self._start:
            self._closed = True
            started = self._thread.ident is not None
            self._orders.put(None)
        if started:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            order = self._next()
            if order is None:
                break
            try:
                result = order.work(self._opened())
                self._live.refresh()
            except BaseException as error:
                if not isinstance(error, ServiceError) and self._publishing is None:
                    self._let_go()  # opening the store again repairs what a failed change left
                order.future.set_exception(_told(error))
            else:
                order.future.set_result(result)
                self.background.attempt(self._publish_if_grown, lambda _: None)  # the next change tries it again
        if self._publishing is not None:
            self._publishing.join()  # the next writer tidies up after it
        self._let_go()

    def _next(self) -> _Order | None:
        """The next order; the store is let go while there is none."""
        while True:
            try:
                return self._orders.get(timeout=LINGER_SECONDS if self._writer is not None else None)
            except queue.Empty:
                if self._publishing is None:
                    self._let_go()
                else:
                    return self._orders.get()  # the publication needs the lock; its end is an order too

    def _opened(self) -> StoreWriter:
        if self._writer is None:
            from indexer.store.writer import StoreWriter

            writer = StoreWriter.open(self._path)
            with self._live.lease() as generation:
                served = generation.reader.manifest.fingerprint
            if writer.settings.fingerprint != served:
                writer.close()
                raise StoreError(
                    f"the store was built anew with checkpoint {writer.settings.fingerprint[:12]}, this service has "
                    f"loaded {served[:12]}; restart it"
                )
            self._writer = writer
        return self._writer

    def _let_go(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self.background.attempt(writer.close, lambda _: None)  # its lock is released in any case

    def _publish_if_grown(self) -> None:
        with self._live.lease() as generation:
            grown = generation.reader.overlay_rows
        if self._publishing is None and 0 < self._overlay_rows < grown and self._writer is not None:
            logger.info("%d rows are not in the generation: publishing one", grown)
            self._publishing = threading.Thread(
                target=self._publish, args=(self._writer.settings,), name="library publisher", daemon=True
            )
            try:
                self._publishing.start()
            except BaseException:
                self._publishing = None  # the system gives no more threads
                raise

    def _publish(self, settings: StoreSettings) -> None:
        from indexer.store import generation
        from indexer.store.catalogue import CatalogueReader

        done = False
        try:
            with closing(CatalogueReader.open_readonly(self._path / generation.CATALOGUE)) as catalogue:
                generation.publish(self._path, catalogue, settings, self._mapper)
            done = True
        except BaseException as error:  # FAISS raises RuntimeError on a full disk; the writer waits for this to end
            self.publisher.failed(error)
            logger.warning("publishing failed; the present generation and its overlay are served on")
        self._orders.put(_Order(lambda writer: self._published(writer, done), Future()))

    def _published(self, writer: StoreWriter, done: bool) -> None:
        self._publishing = None
        if done:
            self.publications += 1
            self.publisher.succeeded()
            writer.tidy()
        else:
            self.failures += 1
            self._overlay_rows *= 2  # what failed once is not tried again after every change


def _told(error: BaseException) -> BaseException:
    """Errors that a caller can act on, as ``ServiceError``; everything else unchanged."""
    if isinstance(error, StoreLocked):
        expected, next_step = "no other process that writes to the store", "try again after the seconds in Retry-After"
    elif errors.is_full(error):
        return errors.refusal()
    else:
        return error
    return Overloaded(str(error), expected=expected, next_step=next_step, retry_after_seconds=RETRY_SECONDS)


def _closing() -> Overloaded:
    return Overloaded("the service is shutting down", expected="a running service", next_step="try again later")
