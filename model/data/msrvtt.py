"""MSR-VTT: 10,000 videos of about 15 s with 20 captions each; three training sets and two test protocols.

``train_split`` ``9k`` and ``7k`` are the 1K-A protocol: 1,000 test videos with one caption each (JSFusion's list).
It has no validation split, so ``held_out_videos`` training videos, with their first caption, are kept for selection.
``full`` is the official split, 6,513/497/2,990, evaluated with all captions.

    annotations/MSRVTT_data.json                sentences: [{video_id, caption}], all captions of all videos
    annotations/MSRVTT_train.9k.csv, .7k.csv    column video_id
    annotations/MSRVTT_JSFUSION_test.csv        columns video_id, sentence
    root/**/video0.mp4                          or .webm, or any other video format
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from model.data.annotation_files import add_once, caption, field, read_csv, read_json
from model.data.dataset import ALL_SPLITS, HELD_OUT_VIDEOS, DatasetConfig, DatasetError, Entry, Split, held_out

# The official split follows the numbers of the videos, which needs no list.
FULL_SPLIT: dict[Split, range] = {"train": range(6513), "val": range(6513, 7010), "test": range(7010, 10000)}
TEST_1K_VIDEOS = 1000


class MsrvttConfig(DatasetConfig):
    """MSR-VTT. ``held_out_videos=None`` means 500 where there is no official validation split."""

    kind: Literal["msrvtt"] = "msrvtt"
    train_split: Literal["9k", "7k", "full"] = "9k"
    held_out_videos: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _held_out_has_an_effect(self) -> MsrvttConfig:
        if self.held_out_videos is not None and (self.train_split == "full" or self.protocol == "reference"):
            raise ValueError(
                "held_out_videos has no effect with train_split full, which has a validation split, or with protocol "
                "reference, which trains on all videos; leave it out"
            )
        return self

    @property
    def splits(self) -> tuple[Split, ...]:
        """See ``DatasetConfig``."""
        return ALL_SPLITS if self.train_split == "full" or self._held_out_count() else ("train", "test")

    @property
    def official_test_videos(self) -> int:
        """See ``DatasetConfig``."""
        return len(FULL_SPLIT["test"]) if self.train_split == "full" else TEST_1K_VIDEOS

    def entries(self, split: Split) -> list[Entry]:
        """See ``DatasetConfig``."""
        if self.train_split == "full":
            captions = self._captions()
            ids = [f"video{number}" for number in FULL_SPLIT[split]]
            return [Entry(video_id=name, captions=captions.get(name, ())) for name in ids]
        return self._test_1k() if split == "test" else self._train_1k(split)

    def _held_out_count(self) -> int:
        if self.protocol == "reference":
            return 0
        return HELD_OUT_VIDEOS if self.held_out_videos is None else self.held_out_videos

    def _test_1k(self) -> list[Entry]:
        seen: dict[str, str] = {}
        entries = []
        for where, row in read_csv(self.annotations / "MSRVTT_JSFUSION_test.csv", ("video_id", "sentence")):
            add_once(seen, row["video_id"], where)
            entries.append(Entry(video_id=row["video_id"], captions=(caption(row["sentence"], where),)))
        return entries

    def _train_1k(self, split: Split) -> list[Entry]:
        seen: dict[str, str] = {}
        for where, row in read_csv(self.annotations / f"MSRVTT_train.{self.train_split}.csv", ("video_id",)):
            add_once(seen, row["video_id"], where)
        count = self._held_out_count()
        selection = held_out(self.kind, list(seen), count) if count else frozenset()
        captions = self._captions()
        entries = []
        for name in seen:
            texts = captions.get(name, ())
            if split == "val" and name in selection:
                entries.append(Entry(video_id=name, captions=texts[:1]))  # one sentence per video, as in the test
            elif split == "train" and name not in selection:
                entries.append(Entry(video_id=name, captions=texts))
        return entries

    def _captions(self) -> dict[str, tuple[str, ...]]:
        path = self.annotations / "MSRVTT_data.json"
        captions: dict[str, list[str]] = {}
        for number, record in enumerate(field(read_json(path), "sentences", list, str(path))):
            where = f"{path}: sentences[{number}]"
            text = caption(field(record, "caption", str, where), where)
            captions.setdefault(field(record, "video_id", str, where), []).append(text)
        if not captions:
            raise DatasetError(f"{path}: there are no sentences")
        return {name: tuple(texts) for name, texts in captions.items()}
