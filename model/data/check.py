"""A data set on disk → what is there, what is missing, what cannot be decoded (``emcl data check``), and which videos
two splits share, because figures on one would be too good after training on the other. Training checks that too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.config import SamplingConfig
from model.data.clips import Clip
from model.data.dataset import NAMED_IN_ERRORS, DatasetError, VideoTextSet
from model.video.sampling import decode

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


@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    """One split. ``undecodable`` is None if nothing was decoded, else pairs of video and reason."""

    videos: VideoTextSet
    undecodable: tuple[tuple[str, str], ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether no video is missing or undecodable."""
        return not self.videos.videos_lost and not self.undecodable

    def as_dict(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return {
            "split": self.videos.split,
            "videos": len(self.videos.clips),
            "captions": len(self.videos.captions),
            "multi_sentence": self.videos.multi_sentence,
            "official_videos": self.videos.official_videos,
            "videos_lost": self.videos.videos_lost,
            "missing": [{"video": item.video_id, "reason": item.reason} for item in self.videos.missing],
            "undecodable": None
            if self.undecodable is None
            else [{"video": name, "reason": reason} for name, reason in self.undecodable],
        }


def check_splits(splits: Sequence[VideoTextSet], *, decode_workers: int = 0) -> list[SplitCheck]:
    """Check every split; with ``decode_workers`` threads, decode each clip as the default sampling does."""
    return [
        SplitCheck(videos=videos, undecodable=_undecodable(videos, decode_workers) if decode_workers else None)
        for videos in splits
    ]


def overlaps(splits: Sequence[VideoTextSet]) -> list[str]:
    """Return a line for every two splits that share videos."""
    lines = []
    for first, second in combinations(splits, 2):
        try:
            require_disjoint(first, second)
        except DatasetError as error:
            lines.append(str(error))
    return lines


def describe(checks: Sequence[SplitCheck]) -> str:
    """Return the counts as a Markdown table, then every missing and every undecodable video."""
    lines = ["| split | videos | captions | evaluated as | missing | undecodable |", "|---" * 6 + "|"]
    for check in checks:
        videos = check.videos
        official = "" if videos.official_videos is None else f" of {videos.official_videos:,}"
        undecodable = "not tried" if check.undecodable is None else f"{len(check.undecodable):,}"
        way = "multi-sentence" if videos.multi_sentence else "pairs"
        lines.append(
            f"| {videos.split} | {len(videos.clips):,}{official} | {len(videos.captions):,} | {way} "
            f"| {videos.videos_lost:,} | {undecodable} |"
        )
    for check in checks:
        bad = [(item.video_id, item.reason) for item in check.videos.missing] + list(check.undecodable or ())
        lines += [f"{check.videos.split}: {name}: {reason}" for name, reason in bad]
    return "\n".join(lines)


def _undecodable(videos: VideoTextSet, workers: int) -> tuple[tuple[str, str], ...]:
    with ThreadPoolExecutor(workers) as pool:
        reasons = tqdm(pool.map(_complaint, videos.clips), total=len(videos.clips), desc=videos.split, unit="video")
        return tuple(
            (clip.name, reason) for clip, reason in zip(videos.clips, reasons, strict=True) if reason is not None
        )


def _complaint(clip: Clip) -> str | None:
    try:
        decode(clip.path, sampling=SamplingConfig(), start_seconds=clip.start_seconds, end_seconds=clip.end_seconds)
    except (ValueError, OSError) as error:
        return str(error)
    return None
