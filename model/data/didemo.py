"""DiDeMo as paragraphs: all descriptions of a video, joined; its first 30 seconds, which is what people described.

    annotations/train_list.txt, val_list.txt, test_list.txt         one video name per line
    annotations/train_data.json, val_data.json, test_data.json      [{"video": name, "description": text, …}, …]
    root/**/NAME        the name holds the original suffix (….avi); the file may have another, such as .mp4

The window is 0 to 31 s, as the reference has it. The reference turns videos that it cannot decode into black ones
and drops those that are missing; here both are errors (reference §8, 23).
"""

from __future__ import annotations

from typing import Literal

from model.data.annotation_files import caption, expect, field, read_ids, read_json
from model.data.dataset import DatasetConfig, Entry, Split

WINDOW_SECONDS = 31.0


class DidemoConfig(DatasetConfig):
    """DiDeMo paragraphs. The released code selects on the test split although there is a validation split."""

    kind: Literal["didemo"] = "didemo"

    @property
    def official_test_videos(self) -> int:
        """See ``DatasetConfig``."""
        return 1004

    def entries(self, split: Split) -> list[Entry]:
        """See ``DatasetConfig``."""
        path = self.annotations / f"{split}_data.json"
        texts: dict[str, list[str]] = {}
        for number, record in enumerate(expect(read_json(path), list, str(path))):
            where = f"{path}: [{number}]"
            text = caption(field(record, "description", str, where), where)
            texts.setdefault(field(record, "video", str, where), []).append(text)
        entries = []
        for name in read_ids(self.annotations / f"{split}_list.txt"):
            captions = (" ".join(texts[name]),) if name in texts else ()
            entries.append(Entry(video_id=name, captions=captions, end_seconds=WINDOW_SECONDS))
        return entries
