"""Fills in when, where and with what videos were recorded that earlier versions indexed without looking.

Reads headers alone, in a process of its own, so that a file that crashes FFmpeg costs only itself.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from indexer.build.decode import check_unchanged, start_worker
from indexer.build.progress import Progress
from indexer.errors import SourceError
from indexer.locations import Location, protocol_of, shard_of
from indexer.store.writer import StoreWriter
from model.video.recording import UNKNOWN_RECORDING, Recording

VIDEOS_AT_ONCE = 64


def fill_recordings(writer: StoreWriter, locations: Iterable[Location], progress: Progress) -> int:
    """Record it for every indexed video that has a file among ``locations`` and was not looked at; returns how many.

    A file that cannot be read counts as one that says nothing. Videos from archives and URLs are left as they are.
    """
    missing = writer.catalogue.without_read_recording()
    files: dict[str, Location] = {}
    for location in locations:
        if location.video_id in missing and shard_of(location.path) is None and protocol_of(location.path) is None:
            files.setdefault(location.video_id, location)
    if not files:
        return 0
    with progress.phase("dates", len(files), "video") as bar:
        rows = _read(files.values())
        while batch := dict(islice(rows, VIDEOS_AT_ONCE)):
            writer.set_recordings(batch)
            bar.advance(len(batch))
    return len(files)


def _read(locations: Iterable[Location]) -> Iterator[tuple[str, Recording]]:
    pool = _new_pool()
    try:
        for location in locations:
            try:
                yield location.video_id, pool.submit(read_recording_of, location).result()
            except BrokenProcessPool:
                pool.shutdown(wait=False)
                pool = _new_pool()
                yield location.video_id, UNKNOWN_RECORDING
    finally:
        pool.shutdown(cancel_futures=True)


def _new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)


def read_recording_of(location: Location) -> Recording:
    """What the header of a file says; nothing if it changed or cannot be read."""
    from model.video.sampling import VideoError, read_recording

    try:
        check_unchanged(location)
        return read_recording(location.path)
    except (SourceError, VideoError, OSError):
        return UNKNOWN_RECORDING
