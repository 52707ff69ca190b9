"""A data set on disk → what is there, what is missing, what cannot be decoded: ``emcl data check``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tqdm import tqdm

from model.config import SamplingConfig
from model.data.clips import Clip
from model.data.dataset import DatasetError, VideoTextSet
from model.data.overlap import require_disjoint
from model.video.sampling import decode


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
