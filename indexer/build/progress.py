"""What a run did, and how far it is: a bar for each phase at a terminal, lines in a file for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from indexer.store.config import Manifest

_SECONDS_BETWEEN_LINES = 0.5
_SHOWN_SUFFIXES = 8


class Bar(Protocol):
    """The progress of one phase."""

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more units as done."""
        ...

    def note(self, text: str) -> None:
        """Show a short text behind the bar."""
        ...


class Progress:
    """Shows nothing. Base of ``TerminalProgress``, for runs without a terminal."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """A named phase of ``total`` units."""
        yield _Silent()


class TerminalProgress(Progress):
    """Shows rate and time left; an occasional line where stderr is not a terminal."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """A named phase of ``total`` units."""
        interval = 0.2 if sys.stderr.isatty() else 10.0
        bar: tqdm[Any] = tqdm(total=total, desc=f"{name:<10}", unit=unit, mininterval=interval, file=sys.stderr)
        with bar:
            yield _TqdmBar(bar)


class FileProgress(Progress):
    """Shows what another shows, and appends lines of ``{phase, done, total, unit, note}`` to a file.

    At most two lines a second, and one at the beginning and the end of each phase.
    """

    def __init__(self, path: Path, shown: Progress) -> None:
        self._path = path
        self._shown = shown

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """A named phase of ``total`` units."""
        with self._path.open("a", encoding="utf-8") as file, self._shown.phase(name, total, unit) as shown:

            def write(done: int, note: str) -> None:
                line = {"phase": name, "done": done, "total": total, "unit": unit, "note": note}
                file.write(json.dumps(line) + "\n")
                file.flush()

            bar = _WrittenBar(shown, write)
            try:
                yield bar
            finally:
                bar.end()


class _WrittenBar:
    def __init__(self, shown: Bar, write: Callable[[int, str], None]) -> None:
        self._shown = shown
        self._write = write
        self._done, self._note = 0, ""
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
        write(0, "")

    def advance(self, count: int = 1) -> None:
        self._shown.advance(count)
        self._done += count
        if time.monotonic() >= self._next:
            self.end()

    def note(self, text: str) -> None:
        self._shown.note(text)
        self._note = text

    def end(self) -> None:
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._write(self._done, self._note)


class _Silent:
    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _TqdmBar:
    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def advance(self, count: int = 1) -> None:
        self._bar.update(count)

    def note(self, text: str) -> None:
        self._bar.set_postfix_str(text)


@dataclass(kw_only=True)
class BuildReport:
    """Counts of one run, filled in by its phases, and what its user should know.

    ``failed`` are files, shards or places in shards that could not be read, with the reason; ``unmatched`` are rows of
    captions without a video, and transcripts that cannot be used; ``passed_over`` counts files in the folders that are
    not videos by their names, by suffix.
    ``manifest`` is that of the current generation; None if there is nothing to search yet.
    """

    found: int = 0
    indexed: int = 0
    captions: int = 0
    transcripts: int = 0
    removed: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    manifest: Manifest | None = None

    @property
    def complete(self) -> bool:
        """Whether everything that was given could be used."""
        return not self.failed and not self.unmatched

    def passed_over_text(self) -> str:
        """``3 .mod, 1 .xyz, 2 without a suffix``, the most first; empty if nothing was passed over."""
        ordered = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ordered[:_SHOWN_SUFFIXES]]
        rest = sum(count for _, count in ordered[_SHOWN_SUFFIXES:])
        return ", ".join([*shown, *([f"{rest} others"] if rest else [])])
