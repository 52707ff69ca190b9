"""Telling people at a terminal how far a long run is: one bar for each phase, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tqdm import tqdm


class Bar(Protocol):
    """The progress of one phase."""

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more units are done."""
        ...

    def note(self, text: str) -> None:
        """Show a short text behind the bar."""
        ...


class Progress:
    """Shows nothing. Base of ``TerminalProgress``; used where nobody looks."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """A named phase of ``total`` units."""
        yield _Silent()


class TerminalProgress(Progress):
    """Shows rate and time left; a line now and then where stderr is no terminal."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """A named phase of ``total`` units."""
        interval = 0.2 if sys.stderr.isatty() else 10.0
        bar: tqdm[Any] = tqdm(total=total, desc=f"{name:<10}", unit=unit, mininterval=interval, file=sys.stderr)
        with bar:
            yield _TqdmBar(bar)


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
