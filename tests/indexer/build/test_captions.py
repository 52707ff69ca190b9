"""Captions while indexing: from files and sidecars, later, of unknown videos, damaged, and alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from index_support import DIM, FakeEncoder, by_name, index

from indexer.errors import CaptionFileError
from indexer.store.reader import StoreReader
from indexer.store.verify import verify


def test_captions_come_from_files_and_sidecars_once(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"video": "0.mp4", "captions": ["zero", "nought"], "tags": ["small"]},
        {"video": "long", "captions": "a long one"},
        {"video": None, "captions": "free"},
    ]
    captions = tmp_path / "c.jsonl"
    captions.write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "1.txt").write_text("one\n")
    report = index(tmp_path / "s", folder, captions=captions)
    assert report.captions == 5
    videos = by_name(tmp_path / "s")
    assert [caption.text for caption in videos["0.mp4"].captions] == ["zero", "nought"]
    assert videos["0.mp4"].tags == ("small",)
    assert [caption.text for caption in videos["1.mp4"].captions] == ["one"]
    again = index(tmp_path / "s", folder, captions=captions)
    assert again.captions == 0
    assert again.manifest == report.manifest


def test_captions_can_follow_later_without_videos(folder: Path, tmp_path: Path) -> None:
    index(tmp_path / "s", folder)
    captions = tmp_path / "c.csv"
    captions.write_text("video,captions\n2.mp4,two\n")
    report = index(tmp_path / "s", captions=captions)
    assert (report.found, report.captions) == (0, 1)
    assert by_name(tmp_path / "s")["2.mp4"].captions[0].text == "two"


def test_captions_of_videos_that_are_not_there_are_reported(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "c.jsonl"
    captions.write_text('{"video": "0", "captions": "x"}\n{"video": "nine", "captions": "y"}\n')
    report = index(tmp_path / "s", folder, captions=captions)
    assert not report.complete
    assert report.unmatched == [f"{captions}:2: there is no video 'nine' among those indexed"]
    assert report.captions == 1


def test_bad_captions_stop_the_run_before_anything_is_encoded(folder: Path, tmp_path: Path) -> None:
    captions = tmp_path / "c.jsonl"
    captions.write_text('{"video": "0"}\n')
    encoder = FakeEncoder()
    with pytest.raises(CaptionFileError, match=r"c\.jsonl:1"):
        index(tmp_path / "s", folder, captions=captions, encoder=encoder)
    assert encoder.encoded_segments == 0


def test_captions_alone_make_a_store(tmp_path: Path) -> None:
    captions = tmp_path / "c.jsonl"
    captions.write_text('{"captions": ["one", "two"]}\n')
    report = index(tmp_path / "s", captions=captions)
    assert report.manifest is not None
    assert report.manifest.counts.model_dump() == {"videos": 0, "segments": 0, "captions": 2, "failed": 0}
    with StoreReader.open(tmp_path / "s") as reader:
        assert (reader.search_videos(np.ones((1, DIM), "f4"), 2)[1] == -1).all()
    assert verify(tmp_path / "s").recall == {"captions": 1.0}
