"""LSMDC: about 118,000 clips of a few seconds from 202 films, with audio descriptions; tested on 1,000 pairs.

    annotations/LSMDC16_annos_training.csv, LSMDC16_annos_val.csv, LSMDC16_challenge_1000_publictect.csv
        no header, separated by tabs: clip id, start and end aligned, start and end extracted, sentence
    root/FILM/CLIP_ID.avi       or any other format, in any folder below root

A clip that has several sentences is one video with several captions. The reference skips three clip ids and every
clip that has no file; here they count as what they are (reference §8, 23).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from model.data.annotation_files import caption, read_lines
from model.data.dataset import DatasetConfig, DatasetError, Entry, Split

FILES: dict[Split, str] = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
_COLUMNS = 6


class LsmdcConfig(DatasetConfig):
    """LSMDC. The released code selects on the validation split, as we do."""

    kind: Literal["lsmdc"] = "lsmdc"

    reference_selects_on: ClassVar[Split] = "val"

    @property
    def official_test_videos(self) -> int:
        """See ``DatasetConfig``."""
        return 1000

    def entries(self, split: Split) -> list[Entry]:
        """See ``DatasetConfig``."""
        path = self.annotations / FILES[split]
        captions: dict[str, list[str]] = {}
        for where, line in read_lines(path):
            fields = line.split("\t")
            if len(fields) != _COLUMNS:
                raise DatasetError(
                    f"{where}: {len(fields)} fields, expected {_COLUMNS} separated by tabs: clip id, start and end "
                    "aligned, start and end extracted, sentence"
                )
            name = fields[0].strip()
            if not name:
                raise DatasetError(f"{where}: the clip id is empty")
            if split == "test" and name in captions:
                raise DatasetError(f"{where}: {name} is listed a second time; each test clip has one sentence")
            captions.setdefault(name, []).append(caption(fields[-1], where))
        if not captions:
            raise DatasetError(f"{path}: the file lists no clips")
        return [Entry(video_id=name, captions=tuple(texts)) for name, texts in captions.items()]
