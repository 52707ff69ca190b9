"""Parts of a corpus: disjoint, together everything, the same on every machine, and indexed into stores of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from index_support import FakeEncoder, make_clip, settings

from indexer.build.options import BuildRequest
from indexer.build.progress import BuildReport, Progress
from indexer.build.run import build
from indexer.errors import SourceError
from indexer.sources.discover import discover
from indexer.sources.partition import WHOLE, Partition, split
from indexer.store.writer import StoreWriter


def build_part(store: Path, part: str, *paths: Path, captions: Path | None = None) -> BuildReport:
    request = BuildRequest(paths=[str(path) for path in paths], partition=Partition.parse(part), captions=captions)
    with StoreWriter.open(store, settings=settings()) as writer:
        return build(writer, FakeEncoder(), request, Progress())


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "-1/4", "1/4/2", "a/b", " 1/4", "1/4\n"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match=r"expected i/n with 1 <= i <= n"):
        Partition.parse(text)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_are_disjoint_and_cover_everything(count: int) -> None:
    keys = [f"folder/{number}.mp4" for number in range(500)]
    parts = [Partition(number=number, count=count) for number in range(1, count + 1)]
    holders = [[part.number for part in parts if part.holds(key)] for key in keys]
    assert all(len(found) == 1 for found in holders)
    sizes = [sum(found == [part.number] for found in holders) for part in parts]
    assert min(sizes) > 500 / count * 0.7


def test_a_part_is_the_same_on_every_machine_and_for_ever(tmp_path: Path) -> None:
    keys = ("a.mp4", "deep/b.mp4", "ü.mp4", "s-000.tar", "https://host/c.mp4")
    assert [next(n for n in range(1, 6) if Partition(number=n, count=5).holds(key)) for key in keys] == [4, 4, 2, 2, 2]
    for mount in ("here", "elsewhere/deep"):
        folder = tmp_path / mount / "clips"
        (folder / "sub").mkdir(parents=True)
        for name in ("a.mp4", "b.mp4", "sub/c.mp4", "sub/d.mp4"):
            (folder / name).write_bytes(b"x")
    parts = [
        [file.path.relative_to(root) for file in split(discover([str(root)]), Partition(number=2, count=3))[0].files]
        for root in (tmp_path / "here" / "clips", tmp_path / "elsewhere" / "deep" / "clips")
    ]
    assert parts[0] == parts[1]


def test_the_whole_is_one_part(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    found = discover([str(tmp_path)])
    mine, others = split(found, WHOLE)
    assert mine == found
    assert others.files == []


def test_captions_of_other_parts_are_no_errors_and_stay_away(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(6):
        make_clip(folder / f"{number}.mp4", number, seconds=0.25)
    rows = [{"video": f"{n}.mp4", "captions": [f"caption {n}"], "tags": ["t"]} for n in range(6)]
    captions = tmp_path / "c.jsonl"
    captions.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"video": "nowhere", "captions": "x"}]))
    reports = [build_part(tmp_path / f"s{n}", f"{n}/2", folder, captions=captions) for n in (1, 2)]
    assert sum(report.indexed for report in reports) == 6
    assert sum(report.captions for report in reports) == 6
    assert min(report.indexed for report in reports) > 0
    for report in reports:
        assert report.failed == []
        assert [row.partition(": ")[2] for row in report.unmatched] == [
            "there is no video 'nowhere' among those indexed"
        ]


def test_a_part_without_videos_publishes_nothing(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", 1, seconds=0.25)
    number = next(n for n in range(1, 4) if not Partition(number=n, count=3).holds(clip.name))
    assert build_part(tmp_path / "s", f"{number}/3", clip).manifest is None
