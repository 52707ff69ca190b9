"""Splits that share videos: figures on one would be too good after training on the other.

In: two splits. Out: nothing, or a ``DatasetError`` that names the shared videos. Both ``emcl data check`` and training
ask here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from model.data.clips import Clip
from model.data.dataset import NAMED_IN_ERRORS, DatasetError, VideoTextSet

logger = logging.getLogger(__name__)


def require_disjoint(first: VideoTextSet, second: VideoTextSet, *, allow_overlap: bool = False) -> None:
    """Raise ``DatasetError`` if a video is in both splits; with ``allow_overlap`` only log it."""
    shared = sorted(shared_clips(first.clips, second.clips) | (first.listed & second.listed))
    if shared:
        refuse_overlap(shared, first.name, (first.split, second.split), allow_overlap=allow_overlap)


def refuse_overlap(shared: Sequence[str], name: str, splits: tuple[str, str], *, allow_overlap: bool) -> None:
    """Raise ``DatasetError`` for videos that are in both ``splits``; with ``allow_overlap`` only log it."""
    message = (
        f"{name}: {len(shared)} videos are both in the {splits[0]} and the {splits[1]} split "
        f"({', '.join(shared[:NAMED_IN_ERRORS])}), so figures on the {splits[1]} split would be too good"
    )
    if not allow_overlap:
        raise DatasetError(
            f"{message}; fix the lists, which are not those of one protocol, or allow it explicitly (allow_overlap: "
            "true in the data section)"
        )
    logger.warning("%s; allowed by allow_overlap", message)


def shared_clips(first: Iterable[Clip], second: Iterable[Clip]) -> set[str]:
    """Return the names of clips of ``first`` that show what a clip of ``second`` shows.

    Videos of published sets are identified by their ids. Users' own videos are the same if they are one file, however
    its path is written, and their windows overlap.
    """
    others: dict[str | Path, list[Clip]] = {}
    for clip in second:
        others.setdefault(_source(clip), []).append(clip)
    return {
        clip.name for clip in first if any(_windows_overlap(clip, other) for other in others.get(_source(clip), ()))
    }


def _source(clip: Clip) -> str | Path:
    return clip.video_id if clip.video_id is not None else clip.path.resolve()


def _windows_overlap(first: Clip, second: Clip) -> bool:
    if first.video_id is not None:
        return True
    first_end, second_end = (math.inf if clip.end_seconds is None else clip.end_seconds for clip in (first, second))
    return first.start_seconds < second_end and second.start_seconds < first_end
