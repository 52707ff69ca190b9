"""Your own videos as training data: a JSON-lines file of ``{"video": path, "captions": [text, …]}``.

Paths are relative to the file's folder. Optional ``"start"`` and ``"end"``, seconds from the video's first frame, make
the line describe that window of the video; other keys are ignored. Lines of the same video and window are one clip
with all their captions: a batch must not have it twice, and in an evaluation it would be its own rival.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from model.clip.preprocess import Preprocess
from model.config import Config, SamplingConfig
from model.data.annotation_files import read_text
from model.data.augment import Augmentation
from model.data.check import require_disjoint
from model.data.clips import NO_AUGMENTATION, Clip, ClipData, EpochOf
from model.data.dataset import Missing, Split, VideoTextSet


class ManifestConfig(Config):
    """Videos listed in a file; without ``validation`` a run is not validated.

    ``allow_missing`` allows missing videos, ``allow_overlap`` allows validation on training videos.
    """

    kind: Literal["manifest"]
    train: Path
    validation: Path | None = None
    allow_missing: bool = False
    allow_overlap: bool = False
    seed: int = 0


def read_manifest(path: Path) -> list[Clip]:
    """Read a manifest. Raises ``ValueError`` that names the line, ``FileNotFoundError`` for the file itself."""
    clips: dict[tuple[Path, float, float | None], Clip] = {}
    # Not str.splitlines, which also splits at characters that may occur inside a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            clip = _parse(line, path.parent, f"{path}, line {number}")
            key = (clip.path, clip.start_seconds, clip.end_seconds)
            earlier = clips[key].captions if key in clips else ()
            clips[key] = replace(clip, captions=earlier + clip.captions)
    if not clips:
        raise ValueError(f'{path} lists no videos; it needs lines like {{"video": "a.mp4", "captions": ["words"]}}')
    return list(clips.values())


def _parse(line: str, folder: Path, where: str) -> Clip:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("video"), str):
        raise ValueError(
            f'{where} must be an object with "video" (a path) and "captions" (a list of texts), got {line!r}'
        )
    captions = record.get("captions")
    if not isinstance(captions, list) or not captions or not all(_is_caption(text) for text in captions):
        raise ValueError(f'{where} must have "captions", a non-empty list of non-empty texts, got {captions!r}')
    start, end = _window(record, where)
    return Clip(path=folder / record["video"], captions=tuple(captions), start_seconds=start, end_seconds=end)


def _is_caption(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _window(record: dict[str, Any], where: str) -> tuple[float, float | None]:
    start, end = record.get("start", 0.0), record.get("end")
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (type(value) in (int, float) and math.isfinite(value) and value >= 0):
            raise ValueError(f'{where} has "{name}" {value!r}, expected seconds from the first frame, 0 or more')
    if start is None or (end is not None and end <= start):
        raise ValueError(f'{where} has the window {start!r} to {end!r}, expected "end" to be greater than "start"')
    return float(start), None if end is None else float(end)


def open_manifest(path: Path, split: Split, *, allow_missing: bool = False) -> VideoTextSet:
    """Read a manifest whose videos must all be there unless ``allow_missing``. Raises ``IncompleteSetError``."""
    return check_manifest(path, split).require_complete(allow_missing=allow_missing)


def check_manifest(path: Path, split: Split) -> VideoTextSet:
    """Read a manifest and look its videos up, whatever is missing."""
    clips = read_manifest(path)
    found = {clip.path: clip.path.is_file() for clip in clips}
    return VideoTextSet(
        name=str(path),
        split=split,
        clips=tuple(clip for clip in clips if found[clip.path]),
        missing=tuple(Missing(video_id=clip.name, reason="no video file") for clip in clips if not found[clip.path]),
    )


class ManifestData(ClipData):
    """Training batches of the videos that a manifest lists."""

    def __init__(
        self,
        config: ManifestConfig,
        *,
        batch_size: int,
        preprocess: Preprocess,
        sampling: SamplingConfig,
        epoch_of: EpochOf = "videos",
        augmentation: Augmentation = NO_AUGMENTATION,
    ) -> None:
        train = open_manifest(config.train, "train", allow_missing=config.allow_missing)
        validation = None
        if config.validation is not None:
            validation = open_manifest(config.validation, "val", allow_missing=config.allow_missing)
            require_disjoint(train, validation, allow_overlap=config.allow_overlap)
        super().__init__(
            train.clips,
            validation.clips if validation else (),
            source=str(config.train),
            seed=config.seed,
            batch_size=batch_size,
            preprocess=preprocess,
            sampling=sampling,
            epoch_of=epoch_of,
            augmentation=augmentation,
        )
