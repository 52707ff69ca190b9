"""ActivityNet Captions as paragraphs: all sentences of a video, joined, describe the whole of it; tested on val_1.

    annotations/train_ids.json, val_ids.json    ["v_…", …]
    annotations/train.json, val_1.json          {"v_…": {"duration": seconds, "sentences": […]}}
    root/**/v_ID.mp4                            or ID.mp4, or any other video format

The published test split is ``val_1``; there is no other labelled one. So ``held_out_videos`` training videos are kept
for selection.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from model.data.annotation_files import add_once, caption, expect, field, read_json
from model.data.dataset import ALL_SPLITS, HELD_OUT_VIDEOS, DatasetConfig, DatasetError, Entry, Split, held_out

_PREFIX = "v_"


class ActivityNetConfig(DatasetConfig):
    """ActivityNet paragraphs. ``held_out_videos=None`` means 500."""

    kind: Literal["activitynet"] = "activitynet"
    held_out_videos: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _held_out_has_an_effect(self) -> ActivityNetConfig:
        if self.held_out_videos is not None and self.protocol == "reference":
            raise ValueError("protocol reference trains on all videos; leave held_out_videos out")
        return self

    @property
    def splits(self) -> tuple[Split, ...]:
        """See ``DatasetConfig``."""
        return ALL_SPLITS if self._held_out_count() else ("train", "test")

    @property
    def official_test_videos(self) -> int:
        """See ``DatasetConfig``."""
        return 4917

    def entries(self, split: Split) -> list[Entry]:
        """See ``DatasetConfig``."""
        if split == "test":
            return self._paragraphs("val_ids.json", "val_1.json")
        entries = self._paragraphs("train_ids.json", "train.json")
        count = self._held_out_count()
        if not count:
            return entries
        selection = held_out(self.kind, [entry.video_id for entry in entries], count)
        return [entry for entry in entries if (entry.video_id in selection) == (split == "val")]

    def _held_out_count(self) -> int:
        if self.protocol == "reference":
            return 0
        return HELD_OUT_VIDEOS if self.held_out_videos is None else self.held_out_videos

    def _paragraphs(self, ids_file: str, texts_file: str) -> list[Entry]:
        ids_path, texts_path = self.annotations / ids_file, self.annotations / texts_file
        texts = expect(read_json(texts_path), dict, str(texts_path))
        seen: dict[str, str] = {}
        for number, name in enumerate(expect(read_json(ids_path), list, str(ids_path))):
            where = f"{ids_path}: [{number}]"
            add_once(seen, expect(name, str, where), where)
        if not seen:
            raise DatasetError(f"{ids_path}: the file lists no videos")
        return [_paragraph(name, texts.get(name), f"{texts_path}: {name}") for name in seen]


def _paragraph(name: str, record: Any, where: str) -> Entry:
    files = (name, name.removeprefix(_PREFIX))
    if record is None:
        return Entry(video_id=name, captions=(), file_names=files)
    sentences = field(record, "sentences", list, where)
    text = " ".join(expect(sentence, str, f"{where}, sentences").strip() for sentence in sentences)
    duration = field(record, "duration", float, where)
    if not (math.isfinite(duration) and duration > 0):
        raise DatasetError(f"{where}: the duration is {duration}, expected seconds greater than 0")
    end = float(math.ceil(duration))
    return Entry(video_id=name, captions=(caption(text, where),), end_seconds=end, file_names=files)
