"""Merging and compacting in processes that kill themselves before their n-th ``fsync``, for tests of what is left.

Started as a process of its own, because it forks: ``python store_steps.py merge|compact FOLDER``. ``FOLDER/n`` is what
remained when the n-th step was not taken; the last one went through.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from index_support import FakeEncoder, fill, kill_before_fsync, location_of, settings

from indexer.store.compact import compact
from indexer.store.merge import merge
from indexer.store.writer import StoreWriter


def make_inputs(folder: Path) -> list[Path]:
    """Two stores that share a video, each of which keeps the media of two."""
    stores = [folder / "one", folder / "two"]
    for store, numbers in zip(stores, (range(4), range(3, 7)), strict=True):
        with StoreWriter.open(store, settings=settings(), shard_bytes=256) as writer:
            fill(writer, numbers)
            for number in numbers[1:3]:
                keep_media(writer, number)
            writer.publish(FakeEncoder())
    return stores


def keep_media(writer: StoreWriter, number: int) -> Path:
    """Keep the bytes of ``video_of(number)`` in the store, as ``--keep-media`` does."""
    place = replace(location_of(number), path=str(writer.path / "media" / f"{location_of(number).video_id}.mp4"))
    media = Path(place.path)
    media.parent.mkdir(exist_ok=True)
    media.write_bytes(b"video %d" % number)
    writer.add_locations([place])
    return media


def make_loose(store: Path) -> None:
    """A store of which a third was removed."""
    with StoreWriter.open(store, settings=settings(), shard_bytes=256) as writer:
        fill(writer, range(9))
        writer.publish(FakeEncoder())
        writer.remove_videos([location_of(number).video_id for number in (0, 4, 8)])
        writer.publish(FakeEncoder())


def merge_stores(store: Path, inputs: list[Path]) -> None:
    """What ``emcl index merge`` does."""
    with StoreWriter.open(store, settings=settings()) as writer:
        merge(writer, inputs)
        writer.publish(FakeEncoder())


def compact_store(store: Path) -> None:
    """What ``emcl index compact`` does."""
    with StoreWriter.open(store) as writer:
        compact(writer)
        writer.publish(FakeEncoder())


def steps(folder: Path, prepare: Callable[[Path], None], work: Callable[[Path], None]) -> None:
    """Do ``work`` on ``folder/n``, made by ``prepare``, up to the n-th step, until it goes through."""
    for number in range(100):
        prepare(folder / str(number))
        child = os.fork()
        if child == 0:
            kill_before_fsync(number)
            work(folder / str(number))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return
    raise AssertionError("100 fsyncs were not enough")


def main(command: str, folder: Path) -> None:
    """Run all steps of a command."""
    if command == "merge":
        inputs = make_inputs(folder / "inputs")
        steps(folder / "killed", lambda _: None, lambda store: merge_stores(store, inputs))
        return
    make_loose(folder / "before")
    steps(folder / "killed", lambda store: shutil.copytree(folder / "before", store) and None, compact_store)


if __name__ == "__main__":
    (Path(sys.argv[2]) / "killed").mkdir(parents=True)
    main(sys.argv[1], Path(sys.argv[2]))
