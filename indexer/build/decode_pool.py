"""The decode workers: locations in, decoded segments out, in whatever order they become ready.

A pool of processes decodes; a file that crashes its process or hangs costs only itself. At most ``2 * workers`` tasks
are in progress and no more than that many decoded segments wait for the caller, so memory depends neither on the number
of videos nor on their length. ``indexer.build.encode`` drives it beside the encoder (``fill``, wait, ``collect``);
``read`` is the plain loop for those who only decode.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from pebble import ProcessExpired, ProcessPool

from indexer.build.decode import (
    DecodedSegment,
    DecodeSettings,
    OpenedVideo,
    Window,
    decode_segment,
    open_video,
    start_worker,
)
from indexer.build.options import DECODE_TIMEOUT_SECONDS
from indexer.locations import Location

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """How many processes decode, and how long one task may take."""

    decode: DecodeSettings
    workers: int
    timeout_seconds: float = DECODE_TIMEOUT_SECONDS


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadResult:
    """One finished task: a window of a video, None for the first; ``opened`` is None if nothing of it can be read.

    Either ``segment`` or ``reason`` is set.
    """

    location: Location
    window: Window | None
    opened: OpenedVideo | None
    segment: DecodedSegment | None
    reason: str | None


@dataclass(frozen=True, eq=False)
class _Task:
    location: Location
    window: Window | None
    opened: OpenedVideo | None


class Reader:
    """A pool of decode workers. Use as a context manager: leaving it ends the processes."""

    def __init__(self, settings: ReaderSettings) -> None:
        self._settings = settings
        self.pool = ProcessPool(
            max_workers=settings.workers,
            # A fresh interpreter for each worker: forking a process that runs torch's threads can deadlock.
            context=multiprocessing.get_context("spawn"),
            initializer=start_worker,
        )

        self._further: deque[_Task] = deque()
        self.running: dict[Future[object], _Task] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.stop()
        self.pool.join()

    @property
    def full(self) -> bool:
        """Whether the maximum number of tasks is in progress."""
        return len(self.running) >= 2 * self._settings.workers

    def fill(self, take: Callable[[], Location | None]) -> None:
        """Start tasks up to the maximum; ``take`` returns the next video, None while there is none."""
        while not self.full:
            # The rest of long videos goes first, so that few are open at a time.
            task = self._further.popleft() if self._further else _first_task(take())
            if task is None:
                return
            self.running[self.submit(task)] = task

    def collect(self, future: Future[object]) -> ReadResult:
        """The result of a task of ``running`` that is done. Errors of single videos are results, never exceptions."""
        result = self._result(self.running.pop(future), future)
        if result.window is None and result.opened is not None:
            self._further += [_Task(result.location, window, result.opened) for window in result.opened.windows[1:]]
        return result

    def read(self, locations: Iterable[Location]) -> Iterator[ReadResult]:
        """Decode every segment of every video."""
        unopened = iter(locations)
        while True:
            self.fill(lambda: next(unopened, None))
            if not self.running:
                return
            for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                yield self.collect(future)

    def submit(self, task: _Task) -> Future[object]:
        """Start a task in a worker process."""
        work: Callable[..., object] = open_video if task.window is None else decode_segment
        arguments: tuple[object, ...] = (task.location, self._settings.decode)
        if task.window is not None:
            arguments += (task.window,)
        future: Future[object] = self.pool.schedule(work, args=arguments, timeout=self._settings.timeout_seconds)
        return future

    def _result(self, task: _Task, future: Future[object]) -> ReadResult:
        opened, segment, reason = task.opened, None, None
        try:
            value = future.result()
            if isinstance(value, OpenedVideo):
                opened, segment = value, value.first
            else:
                assert isinstance(value, DecodedSegment)
                segment = value
        except TimeoutError:
            reason = f"decoding took longer than {self._settings.timeout_seconds:g} s and was stopped"
        except ProcessExpired as error:
            reason = f"the decoder crashed on it (exit code {error.exitcode})"
        except Exception as error:  # no error that a damaged file causes in a worker may end the run
            reason = _named(str(error) or type(error).__name__, task.location)
            logger.debug("%s, %s", task.location.path, task.window, exc_info=error)
        return ReadResult(location=task.location, window=task.window, opened=opened, segment=segment, reason=reason)


def _named(reason: str, location: Location) -> str:
    """A reason with the video's own name in place of that of its copy."""
    if location.file is None:
        return reason
    return reason.replace(location.file, location.path).replace(
        PurePath(location.file).name, PurePath(location.path).name
    )


def _first_task(location: Location | None) -> _Task | None:
    return None if location is None else _Task(location, None, None)


class Feed:
    """Takes from an iterator that may wait (for a download, say) without waiting itself. Use as a context manager.

    One thread draws the next item. The caller must end an iterator that may block forever.
    """

    _END: Final = object()

    def __init__(self, locations: Iterable[Location]) -> None:
        self._items = iter(locations)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._next: Future[object] | None = self._draw()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def drawing(self) -> list[Future[object]]:
        """What to wait for before ``take`` has something; empty at the end."""
        return [] if self._next is None else [self._next]

    def take(self, admit: Callable[[Location], bool]) -> Location | None:
        """The next that is admitted; None if none is there yet, or none any more. Raises what the iterator raises."""
        while self._next is not None and self._next.done():
            item = self._next.result()
            self._next = None if item is self._END else self._draw()
            if isinstance(item, Location) and admit(item):
                return item
        return None

    def _draw(self) -> Future[object]:
        return self._thread.submit(next, self._items, self._END)
