"""VATEX: 10-second videos with ten English captions each, split 25,991/1,500/1,500; evaluated with all captions.

annotations/train_list.txt, val_list.txt, test_list.txt     one video id per line
annotations/vatex_data.json                                 {id: {"enCap": [text, …], …}}
root/**/ID.mp4                                              or any other video format
"""

from __future__ import annotations

from typing import Any, Literal

from model.data.annotation_files import caption, expect, field, read_ids, read_json
from model.data.dataset import DatasetConfig, Entry, Split


class VatexConfig(DatasetConfig):
    """VATEX with its English captions."""

    kind: Literal["vatex"] = "vatex"

    @property
    def official_test_videos(self) -> int:
        """See ``DatasetConfig``."""
        return 1500

    def entries(self, split: Split) -> list[Entry]:
        """See ``DatasetConfig``."""
        path = self.annotations / "vatex_data.json"
        records = expect(read_json(path), dict, str(path))
        ids = read_ids(self.annotations / f"{split}_list.txt")
        return [Entry(video_id=name, captions=_english(records.get(name), f"{path}: {name}")) for name in ids]


def _english(record: Any, where: str) -> tuple[str, ...]:
    if record is None:
        return ()
    return tuple(caption(text, f"{where}, enCap") for text in field(record, "enCap", list, where))
