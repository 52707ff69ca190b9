"""The data of a calibration: test splits are refused under every name, and the digest is that of the content."""

import json
from pathlib import Path

import pytest

from model.data.validation import TestSplitError, data_digest, open_for_choosing

# Which data it takes.


def manifest(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names or ("a.mp4",):
        (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / name).write_bytes(b"video")
    lines = [json.dumps({"video": name, "captions": ["words"]}) for name in names or ("a.mp4",)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["test.jsonl", "test/captions.jsonl", "mine-test.jsonl", "msrvtt_Test_1k.jsonl"])
def test_a_test_split_is_refused_by_its_name(tmp_path, name):
    with pytest.raises(TestSplitError, match="never chosen on a test split"):
        open_for_choosing(manifest(tmp_path / "d" / name), "val")


@pytest.mark.parametrize("name", ["val.jsonl", "latest.jsonl", "contest/captions.jsonl", "test_things0/val.jsonl"])
def test_names_that_only_contain_the_word_are_taken(tmp_path, name):
    assert len(open_for_choosing(manifest(tmp_path / "d" / name), "val").clips) == 1


def test_a_test_split_is_refused_under_cover(tmp_path):
    hidden = manifest(tmp_path / "d" / "test.jsonl")
    (tmp_path / "val.jsonl").symlink_to(hidden)
    with pytest.raises(TestSplitError, match=r"test\.jsonl is named as one"):
        open_for_choosing(tmp_path / "val.jsonl", "val")
    with pytest.raises(TestSplitError, match="the split is test"):
        open_for_choosing(manifest(tmp_path / "d" / "val.jsonl"), "test")
    with pytest.raises(TestSplitError, match="test video test/a"):
        open_for_choosing(manifest(tmp_path / "d" / "val2.jsonl", "test/a.mp4"), "val")
    with pytest.raises(TestSplitError, match="test-0-000017"):
        open_for_choosing(manifest(tmp_path / "d" / "val3.jsonl", "test-0-000017.mp4"), "val")
    folder = manifest(tmp_path / "test" / "captions.jsonl").parent
    with pytest.raises(TestSplitError):
        open_for_choosing(folder, "val")
    configuration = tmp_path / "data.yaml"
    configuration.write_text(
        f"kind: manifest\ntrain: {tmp_path / 'd' / 'val.jsonl'}\nvalidation: {hidden}\n", encoding="utf-8"
    )
    with pytest.raises(TestSplitError, match=r"test\.jsonl"):
        open_for_choosing(configuration, "val")


def test_the_digest_is_that_of_the_content(tmp_path):
    first = open_for_choosing(manifest(tmp_path / "a" / "val.jsonl", "x.mp4", "y.mp4"), "val").clips
    moved = open_for_choosing(manifest(tmp_path / "b" / "other.jsonl", "y.mp4", "x.mp4"), "val").clips
    assert data_digest(first) == data_digest(moved)
    assert data_digest(first) != data_digest(first[:1])
    (tmp_path / "b" / "x.mp4").write_bytes(b"another")
    assert data_digest(first) != data_digest(moved)
