"""Labelled pairs that settings may be chosen on: anything but a test split.

In: what ``--data`` and ``--split`` name. Out: the split, and a digest that says later what was chosen on which data.
A test split is refused by the name of the split, of the manifest or its folder, of the folder of the videos, and by the
names that the demo corpus gives its test clips. A test set under another name cannot be recognised; its digest is
recorded, so that it can at least be found out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from model.data.clips import Clip
from model.data.dataset import Split, VideoTextSet
from model.data.registry import open_for_evaluation

_WORD = re.compile(r"(^|[^a-z])test([^a-z]|$)")
_FOLDER = re.compile(r"(.*[^a-z])?test([^a-z]?(set|split|videos|clips|data))?")
_DEMO_CLIP = re.compile(r"test-\d+-\d+")


class TestSplitError(ValueError):
    """Settings were to be chosen on a test split."""

    __test__ = False  # its name would make pytest collect it


def open_for_choosing(data: Path, split: Split, *, allow_missing: bool = False) -> VideoTextSet:
    """Open a split as ``emcl evaluate`` does. Raises ``TestSplitError`` for a test split, by whatever it shows."""
    if split == "test":
        raise _refusal("the split is test")
    named = data.resolve()
    for name in {data.name, named.name}:
        if _FOLDER.fullmatch(name.lower()) if data.is_dir() else _WORD.search(Path(name).stem.lower()):
            raise _refusal(f"{name} is named as one")
    if named.suffix == ".jsonl" and _FOLDER.fullmatch(named.parent.name.lower()):
        raise _refusal(f"{named.name} is in the folder {named.parent.name}")
    chosen = open_for_evaluation(data, split, allow_missing=allow_missing)
    if _WORD.search(Path(chosen.name).stem.lower()):  # a manifest that a configuration names
        raise _refusal(f"{Path(chosen.name).name} is named as one")
    _check_clips(chosen.clips)
    return chosen


def _check_clips(clips: Sequence[Clip]) -> None:
    for clip in clips:
        if _FOLDER.fullmatch(clip.path.parent.name.lower()) or _DEMO_CLIP.fullmatch(clip.path.stem):
            raise _refusal(f"it holds the test video {clip.path.parent.name}/{clip.path.name}")


def _refusal(why: str) -> TestSplitError:
    return TestSplitError(
        f"settings are never chosen on a test split, and this looks like one: {why}. Expected labelled pairs that are "
        "neither trained nor tested on; pass --split val, or the manifest of a validation split"
    )


def data_digest(clips: Sequence[Clip]) -> str:
    """SHA-256 over names, sizes, windows and captions of clips in any order; their folder does not count.

    Sizes represent contents, which would have to be read in full.
    """
    lines = sorted(
        json.dumps(
            [clip.path.name, clip.path.stat().st_size, clip.start_seconds, clip.end_seconds, list(clip.captions)]
        )
        for clip in clips
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
