"""Answers as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from service.schemas.search import CaptionOut, HitOut


def hits_table(hits: Sequence[HitOut]) -> str:
    """One line for each hit: scores, the moment, the segment, title, tags."""
    rows = [
        (
            f"{number}",
            f"{hit.score:.3f}",
            f"{hit.stage1_score:.3f}",
            clock(hit.moment),
            f"{clock(hit.start)}-{clock(hit.end)}",
            hit.title,
            " ".join(hit.tags),
        )
        for number, hit in enumerate(hits, start=1)
    ]
    return _table(("#", "score", "stage 1", "moment", "segment", "video", "tags"), rows)


def captions_table(captions: Sequence[CaptionOut]) -> str:
    """One line for each caption: scores, the moment in the upload, the text."""
    rows = [
        (f"{number}", f"{caption.score:.3f}", f"{caption.stage1_score:.3f}", clock(caption.moment), caption.text)
        for number, caption in enumerate(captions, start=1)
    ]
    return _table(("#", "score", "stage 1", "moment", "caption"), rows)


def clock(seconds: float) -> str:
    """``75.25`` is ``1:15.2``; hours only where there are any."""
    tenths = int(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{rest // 10:02d}.{rest % 10}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return "nothing found"
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )
