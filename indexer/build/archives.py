"""Indexing from tar shards and URLs: downloaded videos are encoded and labelled, a few sources at a time.

A source counts as read when the places, captions, tags and titles of all that it holds are committed, so that a run
that was killed reads again only the sources in progress, and skips those of their videos that are indexed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from indexer.build.decode_pool import ReaderSettings
from indexer.build.encode import FeatureEncoder, VideoEncoding, encode_captions
from indexer.build.options import BuildOptions
from indexer.build.progress import Bar, BuildReport, Progress
from indexer.locations import SEPARATOR, Location, shard_of
from indexer.sources.discover import PackedSource
from indexer.sources.download_buffer import DownloadBuffer, SourceResult
from indexer.sources.url import RemoteFiles
from indexer.store import media
from indexer.store.writer import StoreWriter
from model.durable import sync_file, sync_folder

MEDIA = media.FOLDER

SHARDS_AT_ONCE, VIDEOS_AT_ONCE = 4, 1024
"""Sources that are committed together: as many shards as are read at a time, or so many single videos."""

_ENDING = re.compile(r"\.[a-z0-9]{2,4}")


def index_packed(
    writer: StoreWriter,
    encoder: FeatureEncoder,
    sources: Sequence[PackedSource],
    remote: RemoteFiles,
    reader: ReaderSettings,
    options: BuildOptions,
    report: BuildReport,
    progress: Progress,
) -> None:
    """Read, encode and commit what the sources hold. Errors of sources and videos are recorded as results, never
    raised.
    """
    if not sources:
        return
    former = len(report.failed)
    run = _Run(writer, encoder, options, report)
    known = {location.path: location for location in writer.catalogue.locations()}
    rows = {row.name: row for row in writer.catalogue.sources()}
    with (
        progress.phase("sources", len(sources), "source") as bar,
        DownloadBuffer(writer.path, remote, known, rows, run.wants) as buffer,
    ):
        for wave in _waves(sources):
            results: list[SourceResult] = []
            run.encode(buffer, buffer.download(wave, results), reader, bar)
            run.commit(sorted(results, key=lambda result: result.source.name))
            bar.advance(len(results))
    report.failed[former:] = sorted(report.failed[former:])


class _Run:
    def __init__(
        self, writer: StoreWriter, encoder: FeatureEncoder, options: BuildOptions, report: BuildReport
    ) -> None:
        self._writer = writer
        self._encoder = encoder
        self._options = options
        self._report = report
        self._states = dict(writer.catalogue.states())  # as they were; read by the threads of the download buffer
        self._media = writer.path.absolute() / MEDIA
        files = {str(path) for path in self._media.iterdir()} if self._media.is_dir() else set()
        self._kept = {place.video_id for place in writer.catalogue.locations() if place.path in files}
        self._told: set[str] = set()

    def wants(self, location: Location) -> bool:
        """Whether a known video has to be read from its unchanged source all the same."""
        state = self._states.get(location.video_id)
        if state == "indexed":
            return self._options.keep_media and location.video_id not in self._kept
        return state != "failed" or self._options.retry_failed

    def encode(self, buffer: DownloadBuffer, locations: Iterator[Location], reader: ReaderSettings, bar: Bar) -> None:
        under_way: set[str] = set()

        def admit(location: Location) -> bool:
            self._writer.add_locations([location])
            new = location.video_id not in under_way and self._writer.catalogue.state(location.video_id) != "indexed"
            if new:
                under_way.add(location.video_id)
                return True
            if location.video_id not in under_way:
                self._keep(location)
            buffer.release(location)
            return False

        def done(location: Location, failure: str | None, flaw: str | None) -> None:
            if failure is not None:
                self._fail(location.path, failure)
            else:
                self._report.indexed += 1
                bar.note(f"{self._report.indexed} videos")
                self._keep(location)
                if flaw is not None:
                    self._report.notes.append(f"{location.path} was indexed in part: {flaw}")
            under_way.discard(location.video_id)
            buffer.release(location)

        VideoEncoding(self._encoder, self._writer, done).run(locations, reader, admit)

    def commit(self, results: Sequence[SourceResult]) -> None:
        """Record what sources contain about their videos, and then that they were read."""
        for result in results:
            self._report.found += len(result.paths)
            for path, video_id in result.paths.items():
                reason = self._writer.catalogue.failure(video_id)
                if reason is not None and path not in self._told:
                    self._fail(path, f"{reason} (not read again while its source is the same, but with --retry-failed)")
            self._label(result)
        whole = [result for result in results if result.row is not None and result.row.complete]
        gone = [path for result in whole for path in result.former if path not in result.paths]
        self._writer.add_locations([], forgotten=gone)
        self._report.notes += [f"{path} is gone from its shard" for path in gone]
        self._writer.add_sources(result.row for result in results if result.row is not None)
        for result in results:
            row = self._writer.catalogue.source(result.source.name)
            if row is not None and row.reason is not None:
                self._fail(row.name, row.reason)

    def _label(self, result: SourceResult) -> None:
        labels = result.labels
        captions, tags, titles = [], dict[str, list[str]](), dict(result.names)
        for key, texts in labels.captions.items():
            if texts and key not in result.videos:
                self._report.unmatched.append(f"{result.source.name}!{key}: there is no video for these captions")
            captions += [(video_id, text) for video_id in result.videos.get(key, []) for text in texts]
        for key, names in labels.tags.items():
            for video_id in result.videos.get(key, []):
                tags.setdefault(video_id, []).extend(names)
        for key, title in labels.titles.items():
            titles |= dict.fromkeys(result.videos.get(key, []), title)
        self._writer.add_titles(titles)
        self._writer.add_tags(tags)
        new = [caption for caption in dict.fromkeys(captions) if not self._writer.catalogue.has_caption(*caption)]
        encode_captions(new, self._encoder, self._writer, lambda _: None)
        self._report.captions += len(new)

    def _fail(self, path: str, reason: str) -> None:
        self._told.add(path)
        self._report.failed.append((path, reason))

    def _keep(self, location: Location) -> None:
        """Move the copy into the store. Its place is committed first: the service removes files that have none."""
        if not self._options.keep_media or location.video_id in self._kept:
            return
        assert location.file is not None, location
        shard = shard_of(location.path)
        name = location.path.partition("?")[0] if shard is None else location.path.removeprefix(f"{shard}{SEPARATOR}")
        ending = PurePosixPath(name).suffix.lower()
        target = self._media / f"{location.video_id}{ending if _ENDING.fullmatch(ending) else '.bin'}"
        self._media.mkdir(exist_ok=True)
        sync_file(Path(location.file))
        stat = os.stat(location.file)  # noqa: PTH116 - a string came with the location
        place = Location(
            path=str(target), video_id=location.video_id, size_bytes=stat.st_size, modified_ns=stat.st_mtime_ns
        )
        self._writer.add_locations([place])
        Path(location.file).replace(target)
        sync_folder(self._media)
        self._kept.add(location.video_id)


def _waves(sources: Sequence[PackedSource]) -> Iterator[list[PackedSource]]:
    shards = [source for source in sources if source.is_shard]
    videos = [source for source in sources if not source.is_shard]
    for group, count in ((shards, SHARDS_AT_ONCE), (videos, VIDEOS_AT_ONCE)):
        for start in range(0, len(group), count):
            yield group[start : start + count]
