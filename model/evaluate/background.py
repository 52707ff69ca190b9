"""Texts that have nothing to do with a given library: what an unremarkable match of a query looks like is measured
with them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent.parent / "assets" / "background.txt"


@cache
def everyday_and_nonsense() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """About 300 plain descriptions of everyday footage, and 80 texts of random letters, which mean nothing."""
    _, everyday, nonsense = _FILE.read_text(encoding="utf-8").split("# ")
    return tuple(everyday.splitlines()[1:]), tuple(nonsense.splitlines()[1:])


def background_texts() -> tuple[str, ...]:
    """All of them."""
    everyday, nonsense = everyday_and_nonsense()
    return everyday + nonsense
