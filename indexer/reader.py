"""The decode workers: locations in, decoded segments out, in whatever order they become ready.

A pool of processes decodes; a file that crashes its process or hangs costs only itself. At most ``2 * workers`` tasks
are under way and no more than that many decoded segments wait for the caller, so memory depends neither on the number
of videos nor on their length.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from pebble import ProcessExpired, ProcessPool

from indexer.decode import DecodedSegment, DecodeSettings, OpenedVideo, decode_segment, open_video, start_worker
from indexer.rows import Location

logger = logging.getLogger(__name__)

DECODE_TIMEOUT_SECONDS = 300.0
"""A task decodes the frames of one window; minutes mean that the file or the disk hangs."""


@dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """How many processes decode, and how long one task may take."""

    decode: DecodeSettings
    workers: int
    timeout_seconds: float = DECODE_TIMEOUT_SECONDS


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadResult:
    """One finished task: window ``number`` of a video. ``opened`` is None if the video cannot be read at all.

    Either ``segment`` or ``reason`` is set.
    """

    location: Location
    number: int
    opened: OpenedVideo | None
    segment: DecodedSegment | None
    reason: str | None


@dataclass(frozen=True, eq=False)
class _Task:
    location: Location
    number: int
    opened: OpenedVideo | None


class Reader:
    """A pool of decode workers. Use as a context manager: leaving it ends the processes."""

    def __init__(self, settings: ReaderSettings) -> None:
        self._settings = settings
        self._pool = ProcessPool(
            max_workers=settings.workers,
            # A fresh interpreter for each worker: forking a process that runs torch's threads can deadlock.
            context=multiprocessing.get_context("spawn"),
            initializer=start_worker,
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def read(self, locations: Iterable[Location]) -> Iterator[ReadResult]:
        """Decode every segment of every video. Errors of single videos are results, never exceptions."""
        unopened = iter(locations)
        further: deque[_Task] = deque()  # the rest of long videos goes first, so that few are open at a time
        running: dict[Future[object], _Task] = {}
        while True:
            while len(running) < 2 * self._settings.workers:
                task = further.popleft() if further else _first_task(next(unopened, None))
                if task is None:
                    break
                running[self._submit(task)] = task
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = self._result(running.pop(future), future)
                if result.number == 0 and result.opened is not None:
                    further += [_Task(result.location, n, result.opened) for n in range(1, len(result.opened.windows))]
                yield result

    def _submit(self, task: _Task) -> Future[object]:
        work: Callable[..., object] = open_video if task.opened is None else decode_segment
        arguments: tuple[object, ...] = (task.location, self._settings.decode)
        if task.opened is not None:
            arguments += (task.number, task.opened.windows)
        future: Future[object] = self._pool.schedule(work, args=arguments, timeout=self._settings.timeout_seconds)
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
        except Exception as error:  # whatever a damaged file provokes in a worker must not end the run
            reason = str(error) or type(error).__name__
            logger.debug("%s, segment %d", task.location.path, task.number, exc_info=error)
        return ReadResult(location=task.location, number=task.number, opened=opened, segment=segment, reason=reason)


def _first_task(location: Location | None) -> _Task | None:
    return None if location is None else _Task(location, 0, None)
