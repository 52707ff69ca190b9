"""Folders that are indexed again whenever their files change.

In: folders, and a function that indexes them once. It is called at the start, and then whenever files were added,
changed, moved or removed and have not changed for ``settle_seconds`` since. A file that is still growing is left out of
a run and waits for the next one. The watch waits for a folder that disappears (an unmounted disk), and removes nothing
for it.

Notifications of the operating system can be lost (network shares, full queues), so the folders are also scanned every
``rescan_seconds``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from watchfiles import watch as watch_files

from indexer.errors import SourceError, StoreLocked

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5
RETRY_SECONDS = 5.0
"""How long to wait for another writer of the store before the next attempt."""

Index = Callable[[Sequence[Path], Collection[Path]], None]
"""Indexes these folders, leaving out these files, which are still being written."""


@dataclass(kw_only=True)
class Settling:
    """Which of the changed files are still changing. ``clock`` counts seconds."""

    settle_seconds: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[Path, tuple[tuple[int, int] | None, float]] = field(default_factory=dict)

    def note(self, paths: Iterable[Path]) -> None:
        """These have changed."""
        for path in paths:
            self._seen[path] = (_state(path), self.clock())

    def settled(self) -> bool:
        """Check all changed files again. True if at least one of them has settled."""
        now = self.clock()
        for path, (state, _) in list(self._seen.items()):
            found = _state(path)
            if found != state:
                self._seen[path] = (found, now)
        return any(now - since >= self.settle_seconds for _, since in self._seen.values())

    def restore(self, other: Settling) -> None:
        """Add the changes of ``other`` again, because its files were not indexed."""
        self._seen = other._seen | self._seen

    def copy(self) -> Settling:
        """A copy of the changes."""
        return replace(self, _seen=dict(self._seen))

    def take(self) -> frozenset[Path]:
        """Remove the settled files, which are indexed now; returns the others."""
        now = self.clock()
        self._seen = {path: seen for path, seen in self._seen.items() if now - seen[1] < self.settle_seconds}
        return frozenset(path for path, (state, _) in self._seen.items() if state is not None)


def watch_folders(
    folders: Sequence[Path],
    index: Index,
    *,
    settle_seconds: float = 5.0,
    rescan_seconds: float = 600.0,
    stop: threading.Event,
) -> None:
    """Index ``folders`` now and after every change, until ``stop`` is set.

    ``StoreLocked`` and ``SourceError`` of ``index`` are logged, and the run is repeated; anything else is raised.
    """
    while not stop.is_set():
        present = [folder for folder in folders if folder.is_dir()]
        for folder in set(folders) - set(present):
            logger.warning("%s does not exist (is its disk mounted?); waiting for it without removing anything", folder)
        if present:
            _watch_present(folders, present, index, settle_seconds, rescan_seconds, stop)
        else:
            stop.wait(RETRY_SECONDS)


def _watch_present(
    folders: Sequence[Path],
    present: Sequence[Path],
    index: Index,
    settle_seconds: float,
    rescan_seconds: float,
    stop: threading.Event,
) -> None:
    """Watch until ``stop`` is set or the set of folders that are there changes."""
    settling = Settling(settle_seconds=settle_seconds)
    identities = _identities(folders)
    due = 0.0  # the first run is at once
    tick_ms = round(1000 * min(TICK_SECONDS, settle_seconds))
    changes = watch_files(
        *present, stop_event=stop, rust_timeout=tick_ms, yield_on_timeout=True, debounce=tick_ms, raise_interrupt=True
    )
    for changed in changes:
        settling.note(Path(path) for _, path in changed)
        if _identities(folders) != identities:
            return  # unmounted, or mounted again: the watch of the old folder gets no events
        if time.monotonic() < due and not settling.settled():
            continue
        due = time.monotonic() + (rescan_seconds if _indexed(index, present, settling) else RETRY_SECONDS)


def _indexed(index: Index, present: Sequence[Path], settling: Settling) -> bool:
    """Whether a run was completed; if not, its changes wait for the next one."""
    before = settling.copy()
    try:
        index(present, settling.take())
    except StoreLocked as error:
        logger.info("%s; trying again in %.0f s", error, RETRY_SECONDS)
    except SourceError as error:
        logger.warning("%s; trying again in %.0f s", error, RETRY_SECONDS)
    else:
        return True
    settling.restore(before)
    return False


def _identities(folders: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Device and inode of each folder, None where it is missing; another pair means another file system there."""
    found: list[tuple[int, int] | None] = []
    for folder in folders:
        try:
            status = folder.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found


def _state(path: Path) -> tuple[int, int] | None:
    """Size and modification time of a file, None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
