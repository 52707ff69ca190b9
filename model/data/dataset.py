"""One split of a video-text data set: its clips in the order of the annotations, and what of it is missing on disk.

Every set gives the same value, ``VideoTextSet``, which training batches and evaluation read. A set is described by a
``DatasetConfig``: its annotations say which videos and captions a split has, the videos are looked up below ``root``.

Nothing is dropped silently: a split with missing videos opens only if allowed, and records what is missing.

    DatasetError(ValueError)
    └── IncompleteSetError      videos of a split are missing, which was not allowed
"""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model.config import Config
from model.data.clips import Clip
from model.video.formats import ALL_SUFFIXES

logger = logging.getLogger(__name__)

Split: TypeAlias = Literal["train", "val", "test"]
ALL_SPLITS: tuple[Split, ...] = ("train", "val", "test")
# How many of the validation videos are cut from the training videos of a set that has no validation split.
HELD_OUT_VIDEOS = 500
NAMED_IN_ERRORS = 10


class DatasetError(ValueError):
    """Base of what can be wrong with a data set; the message names the file and what to do."""


class IncompleteSetError(DatasetError):
    """Videos of a split are missing, and it was not allowed to do without them."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A video as the annotations have it. ``file_names`` are what its file may be called, best first."""

    video_id: str
    captions: tuple[str, ...]
    start_seconds: float = 0.0
    end_seconds: float | None = None
    file_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A listed video that the split has to do without, and why."""

    video_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class VideoTextSet:
    """A split. ``clips`` are in the order of the annotations, each with all captions that evaluation gives it.

    ``official_videos`` is how many videos the published protocol has, None where it does not say.
    """

    name: str
    split: Split
    clips: tuple[Clip, ...]
    missing: tuple[Missing, ...] = ()
    official_videos: int | None = None

    @property
    def captions(self) -> list[str]:
        """All captions; those of one video are consecutive, in the order of ``clips``."""
        return [text for clip in self.clips for text in clip.captions]

    @property
    def caption_ids(self) -> list[str]:
        """``VIDEO#N``, N counted from 0 within the video."""
        return [f"{clip.name}#{number}" for clip in self.clips for number in range(len(clip.captions))]

    @property
    def video_of_caption(self) -> NDArray[np.intp]:
        """(T,) the row in ``clips`` of each caption: the grouping of the multi-sentence protocol."""
        return np.repeat(np.arange(len(self.clips)), [len(clip.captions) for clip in self.clips])

    @property
    def multi_sentence(self) -> bool:
        """Whether some video has several captions (reference §4.2)."""
        return any(len(clip.captions) > 1 for clip in self.clips)

    @property
    def listed(self) -> frozenset[str]:
        """The names of all clips that the annotations list, those that are missing too."""
        return frozenset({clip.name for clip in self.clips} | {item.video_id for item in self.missing})

    @property
    def videos_lost(self) -> int:
        """How many videos this split has fewer than its annotations, or than the published protocol."""
        listed = len(self.clips) + len(self.missing)
        return max(listed, self.official_videos or 0) - len(self.clips)

    def require_complete(self, *, allow_missing: bool) -> VideoTextSet:
        """Return this split if it is complete or need not be. Raises ``IncompleteSetError``."""
        if not self.clips:
            raise IncompleteSetError(f"{self.name}: no video of the {self.split} split was found. {self._losses()}")
        if self.videos_lost and not allow_missing:
            raise IncompleteSetError(
                f"{self._losses()} Figures on a part of a set cannot be compared with anyone's: complete it, or allow "
                "it explicitly (--allow-missing; allow_missing: true in a training configuration). All of the missing "
                "are listed by `emcl data check`"
            )
        if self.videos_lost:
            logger.warning("%s", self._losses())
        return self

    def _losses(self) -> str:
        named = "; ".join(f"{item.video_id} ({item.reason})" for item in self.missing[:NAMED_IN_ERRORS])
        more = len(self.missing) - NAMED_IN_ERRORS
        total = len(self.clips) + self.videos_lost
        text = f"{self.name}: {self.videos_lost} of the {total} videos of the {self.split} split are missing"
        if len(self.missing) < self.videos_lost:
            text += f" (the annotations list {len(self.clips) + len(self.missing)}, the protocol has {total})"
        return text + (f": {named}{f'; and {more} more' if more > 0 else ''}." if named else ".")


class VideoFolder:
    """The videos below a folder, at any depth, by name without suffix. Hidden files and folders are skipped."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; `root` is the folder of the set's videos")
        self._by_name: dict[str, list[Path]] = {}
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(files):
                path = Path(folder, file)
                if path.suffix.lower() in ALL_SUFFIXES and not file.startswith("."):
                    self._by_name.setdefault(path.stem, []).append(path)

    def find(self, names: Iterable[str]) -> Path | None:
        """Return the file of the first name that has one; a name may end in a video suffix, which need not be kept.

        Raises ``DatasetError`` if two folders hold equally good files.
        """
        for name in names:
            named = Path(name)
            stem = named.stem if named.suffix.lower() in ALL_SUFFIXES else name
            found = [path for path in self._by_name.get(stem, ()) if path.name == name]
            found = found or self._by_name.get(stem) or self._by_name.get(name) or []
            if found:
                return _best_of(found)
        return None


def _best_of(found: Sequence[Path]) -> Path:
    ranks = [ALL_SUFFIXES.index(path.suffix.lower()) for path in found]
    best = [path for path, rank in zip(found, ranks, strict=True) if rank == min(ranks)]
    if len(best) > 1:
        raise DatasetError(
            f"{best[0]} and {best[1]} are both files of the video {best[0].stem}; move one of them out of the folder"
        )
    return best[0]


class DatasetConfig(Config, ABC):
    """A published set: videos below ``root``, annotation files in ``annotations``.

    ``protocol`` ``held-out`` selects models on videos that are neither trained nor tested on. ``reference`` selects
    where the released code does, for most sets on the test split, and trains on all training videos.
    ``allow_missing`` lets a training do without the videos that are missing, ``allow_overlap`` lets it have videos in
    its training split that are in another split too.
    """

    kind: str
    root: Path
    annotations: Path
    protocol: Literal["held-out", "reference"] = "held-out"
    allow_missing: bool = False
    allow_overlap: bool = False
    seed: int = 0

    reference_selects_on: ClassVar[Split] = "test"

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are under this configuration."""
        return ALL_SPLITS

    @property
    def selection_split(self) -> Split:
        """What models are selected on while training; it may be absent from ``splits``."""
        return self.reference_selects_on if self.protocol == "reference" else "val"

    @property
    @abstractmethod
    def official_test_videos(self) -> int:
        """How many videos the published test split has."""

    @abstractmethod
    def entries(self, split: Split) -> list[Entry]:
        """Read the annotations of a split. Raises ``DatasetError`` that names file and line, ``FileNotFoundError``."""

    def read(self, split: Split) -> VideoTextSet:
        """Read a split and look its videos up, whatever is missing."""
        if split not in self.splits:
            raise DatasetError(
                f"{self.kind} has no {split} split under protocol {self.protocol!r} and these settings; "
                f"there are: {', '.join(self.splits)}"
            )
        folder = VideoFolder(self.root)
        clips, missing = [], []
        for entry in self.entries(split):
            path = folder.find(entry.file_names or (entry.video_id,))
            if path is None or not entry.captions:
                reason = "no video file" if path is None else "no captions in the annotations"
                missing.append(Missing(video_id=entry.video_id, reason=reason))
                continue
            clips.append(
                Clip(
                    path=path,
                    captions=entry.captions,
                    video_id=entry.video_id,
                    start_seconds=entry.start_seconds,
                    end_seconds=entry.end_seconds,
                )
            )
        return VideoTextSet(
            name=self.kind,
            split=split,
            clips=tuple(clips),
            missing=tuple(missing),
            official_videos=self.official_test_videos if split == "test" else None,
        )

    def open(self, split: Split, *, allow_missing: bool = False) -> VideoTextSet:
        """Read a split that must be complete unless ``allow_missing``. Raises ``IncompleteSetError``."""
        return self.read(split).require_complete(allow_missing=allow_missing)


def held_out(kind: str, video_ids: Sequence[str], count: int) -> frozenset[str]:
    """Choose ``count`` of the training videos for model selection: those of the smallest SHA-256 of ``KIND:ID``.

    The choice depends on the names alone, so it is the same everywhere and forever, and a larger one contains it.
    """
    if count >= len(video_ids):
        raise DatasetError(
            f"held_out_videos is {count}, but {kind} has only {len(video_ids)} training videos; lower it"
        )
    return frozenset(sorted(video_ids, key=lambda name: hashlib.sha256(f"{kind}:{name}".encode()).digest())[:count])
