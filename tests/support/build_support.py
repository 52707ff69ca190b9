"""Indexing runs of the tests: clips that they read, the run with a fake encoder, and what it made."""

from __future__ import annotations

from pathlib import Path

from index_support import FakeEncoder, make_clip, settings

from indexer.build.options import BuildRequest
from indexer.build.progress import BuildReport, Progress
from indexer.build.run import build
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter


def index(store: Path, *paths: Path | str, encoder: FakeEncoder | None = None, **options: object) -> BuildReport:
    """Index files and folders, as ``emcl index`` does."""
    request = BuildRequest(paths=[str(path) for path in paths], **options)
    with StoreWriter.open(store, settings=settings()) as writer:
        return build(writer, encoder or FakeEncoder(), request, Progress())


def write_clips(folder: Path) -> Path:
    """Four short clips, and one that becomes several segments."""
    for number in range(4):
        make_clip(folder / f"{number}.mp4", number, seconds=0.5)
    make_clip(folder / "long.mp4", 9, seconds=3.5)
    return folder


def by_name(store: Path) -> dict[str, object]:
    """The videos of a store by the name of their file."""
    with StoreReader.open(store) as reader:
        return {Path(video.path or "none").name: video for video in reader.list_videos(state=None)}
