"""Text from outside (file names, titles, captions, logs) on a terminal: nothing in it may move the cursor or hide."""

from __future__ import annotations

_JOINERS = "\u200c\u200d"  # parts of emoji and of words in several scripts


def printable(text: str) -> str:
    """The text with control characters, marks of writing direction and other invisible ones written out: ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
