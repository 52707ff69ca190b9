"""Merging stores, such as the parts of ``--partition``: nothing is decoded or encoded.

In: stores of one model and one way of sampling. Out: one store that holds every video, caption and tag of them once,
with the features that were stored, bit for bit; publishing is left to the caller. The inputs are only read. Everything
that is copied is committed in pieces, so a run that is killed is continued by running it again.

What is in several stores: a video is copied from the first in which it is indexed; locations, captions and tags are
combined; of different titles, and of different videos said to be at one path, the first store's is kept.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from indexer.errors import Damaged, NotAStore, SettingsConflict, StoreError
from indexer.locations import Location
from indexer.store import generation, media
from indexer.store.catalogue import CatalogueReader
from indexer.store.config import StoreSettings
from indexer.store.shards import CAPTIONS, FRAMES, POOLED, SHARD_KINDS, Array, Place, ShardReader
from indexer.store.writer import EncodedSegment, EncodedVideo, StoreWriter
from model.durable import TEMPORARY_PREFIX, sync_file, sync_folder

MEDIA = media.FOLDER
FIXED = ("fingerprint", "dim", "sampling", "segment_seconds")
"""Settings in which all stores must agree, because they shape the features."""

_BYTES_AT_ONCE = 32 << 20
_CAPTIONS_AT_ONCE = 1024

_SEGMENTS = """
SELECT number, start_seconds, end_seconds, timestamps_seconds, shard, row, frames, crc32, pooled_shard, pooled_row,
    pooled_crc32 FROM segments WHERE video_id = ? ORDER BY number
"""


@dataclass(kw_only=True)
class MergeReport:
    """What was added to the merged store. ``notes`` are for the user."""

    videos: int = 0
    captions: int = 0
    known_videos: int = 0
    notes: list[str] = field(default_factory=list)


class _Input:
    """A store that is read: one moment of its catalogue, and the rows that were committed then."""

    def __init__(self, path: Path, catalogue: CatalogueReader, settings: StoreSettings) -> None:
        self.path = path
        self.catalogue = catalogue
        self.settings = settings
        self._shards = {
            kind.name: ShardReader(path / generation.FEATURES, kind, settings.dim, catalogue.shard_rows(kind.name))
            for kind in SHARD_KINDS
        }

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()
        self.catalogue.close()

    def rows(self, kind: str, place: Place, what: str) -> Array:
        """Rows as they were written. Raises ``Damaged`` if they are not."""
        rows_ND = self._shards[kind].rows(place.shard, place.row, place.rows)
        if len(rows_ND) != place.rows or zlib.crc32(rows_ND.tobytes()) != place.crc32:
            raise Damaged(
                f"{self.path}: the features of {what} are not what was written; `emcl index verify` says how to fix "
                "it, then merge again"
            )
        return rows_ND


def read_merge_settings(stores: Sequence[Path], out: Path) -> StoreSettings:
    """The settings that all of ``stores`` (and ``out``, if it exists) share, with the first one's kind of index.

    Raises ``SettingsConflict`` that names both stores and every difference, ``NotAStore`` or ``NewerFormat``.
    """
    resolved = [store.resolve() for store in stores]
    if out.resolve() in resolved or len(set(resolved)) < len(resolved):
        raise SettingsConflict(f"a store is named twice in {', '.join(map(str, [*stores, out]))}; name each once")
    named = [
        (store, _settings(store)) for store in ([out] if (out / generation.CATALOGUE).exists() else []) + [*stores]
    ]
    known = [(store, settings) for store, settings in named if settings is not None]
    if not known:
        raise NotAStore(f"none of {', '.join(map(str, stores))} holds anything; index videos into them first")
    (first, settings), *others = known
    for store, other in others:
        different = [
            f"{name} is {getattr(other, name)}, there {getattr(settings, name)}"
            for name in FIXED
            if getattr(other, name) != getattr(settings, name)
        ]
        if different:
            raise SettingsConflict(
                f"{store} cannot be merged with {first}: {'; '.join(different)}. Only stores of one model, sampling "
                "and segment length fit together; index the videos of one of them again"
            )
    return settings


def merge(writer: StoreWriter, stores: Sequence[Path], on_video: Callable[[], None] = lambda: None) -> MergeReport:
    """Copy into the open store what it does not hold yet; ``on_video`` is called for each video of each store.

    Raises ``Damaged`` for an input whose features are not what was written, and ``StoreError`` for media that cannot be
    copied; what was copied until then stays.
    """
    report = MergeReport()
    for path in stores:
        store = _open(path)
        if store is None:
            report.notes.append(f"{path} holds nothing")
            continue
        try:
            _merge_locations(writer, store, report)
            _merge_videos(writer, store, report, on_video)
            _merge_captions(writer, store, report)
            _merge_labels(writer, store, report)
            _merge_transcripts(writer, store)
            _merge_sources(writer, store)
        finally:
            store.close()
    return report


def count_videos(stores: Sequence[Path]) -> int:
    """Videos in all stores together, counted as often as they occur."""
    total = 0
    for path in stores:
        catalogue = CatalogueReader.open_readonly(path / generation.CATALOGUE)
        total += len(catalogue.states())
        catalogue.close()
    return total


def _settings(store: Path) -> StoreSettings | None:
    catalogue = CatalogueReader.open_readonly(store / generation.CATALOGUE)
    try:
        return catalogue.settings
    finally:
        catalogue.close()


def _open(path: Path) -> _Input | None:
    catalogue = CatalogueReader.open_readonly(path / generation.CATALOGUE)
    try:
        catalogue.connection.execute("BEGIN")  # one moment, whatever is written meanwhile
        settings = catalogue.settings
        if settings is not None:
            return _Input(path, catalogue, settings)
    except BaseException:
        catalogue.close()
        raise
    catalogue.close()
    return None


def _merge_locations(writer: StoreWriter, store: _Input, report: MergeReport) -> None:
    known = {location.path: location.video_id for location in writer.catalogue.locations()}
    ours = []
    for found in store.catalogue.locations():
        location = _brought_along(found, store, writer)
        if known.get(location.path, location.video_id) != location.video_id:
            report.notes.append(f"{location.path} is another video in {store.path} than in a store before it")
        else:
            ours.append(location)
    # Places first: a service removes media that have none. A run that was cut short may have left some without media.
    writer.add_locations([location for location in ours if location.path not in known])
    for location in ours:
        _copy_media(location, store, writer)


def _brought_along(location: Location, store: _Input, writer: StoreWriter) -> Location:
    """A location in the merged store's own folder, for a video that the input keeps in its own."""
    name = Path(location.path).name
    if media.recorded(store.path, location.path, location.video_id) != location.path:
        return replace(location, path=str(writer.path.absolute() / MEDIA / name))
    return location


def _copy_media(location: Location, store: _Input, writer: StoreWriter) -> None:
    """Take a kept video along: a link if both stores are on one disk (neither ever changes it), else a copy.

    Raises ``StoreError`` if it cannot be, on a full disk say.
    """
    target = Path(location.path)
    source = store.path / MEDIA / target.name
    if target.parent != writer.path.absolute() / MEDIA or target.exists() or not source.exists():
        return
    target.parent.mkdir(exist_ok=True)
    work = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    work.unlink(missing_ok=True)
    try:
        _link_or_copy(source, work)
        sync_file(work)
        work.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        work.unlink(missing_ok=True)
        raise StoreError(
            f"{source} could not be copied to {target} ({error}); run the merge again to continue"
        ) from error


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _merge_videos(writer: StoreWriter, store: _Input, report: MergeReport, on_video: Callable[[], None]) -> None:
    known = writer.catalogue.states()
    writer.add_pending({video_id: size for video_id, size in store.catalogue.sizes().items() if video_id not in known})
    batch: list[EncodedVideo] = []
    for video_id, state in sorted(store.catalogue.states().items()):
        on_video()
        if known.get(video_id) == "indexed":
            report.known_videos += state == "indexed"
        elif state == "indexed":
            batch.append(_video(store, video_id))
            if sum(segment.features_FD.nbytes for video in batch for segment in video.segments) >= _BYTES_AT_ONCE:
                report.videos += _add(writer, batch)
                batch = []
        elif state == "failed":
            reason = store.catalogue.failure(video_id)
            assert reason is not None, video_id
            writer.fail_video(video_id, reason)
    report.videos += _add(writer, batch)


def _add(writer: StoreWriter, videos: Sequence[EncodedVideo]) -> int:
    if videos:
        failures = writer.add_videos(videos)
        assert not failures, failures  # they were stored once already
    return len(videos)


def _video(store: _Input, video_id: str) -> EncodedVideo:
    """A stored video as it was when it had been encoded."""
    query = "SELECT duration_seconds, width, height, reason FROM videos WHERE video_id = ?"
    duration, width, height, reason = store.catalogue.connection.execute(query, (video_id,)).fetchone()
    return EncodedVideo(
        video_id=video_id,
        name=video_id,
        duration_seconds=duration,
        width=width,
        height=height,
        reason=reason,
        segments=list(_segments(store, video_id)),
        recording=store.catalogue.recording(video_id),
    )


def _segments(store: _Input, video_id: str) -> Iterator[EncodedSegment]:
    for row in store.catalogue.connection.execute(_SEGMENTS, (video_id,)).fetchall():
        number, start, end, times, shard, first, frames, crc32, pooled_shard, pooled_row, pooled_crc32 = row
        what = f"video {video_id[:12]}, segment {number}"
        pooled = Place(shard=pooled_shard, row=pooled_row, rows=1, crc32=pooled_crc32)
        yield EncodedSegment(
            number=number,
            start_seconds=start,
            end_seconds=end,
            timestamps_seconds=np.frombuffer(times, dtype="<f8"),
            features_FD=_floats(store.rows(FRAMES.name, Place(shard=shard, row=first, rows=frames, crc32=crc32), what)),
            pooled_D=_floats(store.rows(POOLED.name, pooled, what))[0],
        )


def _floats(rows_ND: Array) -> np.ndarray:
    return np.array(rows_ND)  # no view into a file that may go


def _merge_captions(writer: StoreWriter, store: _Input, report: MergeReport) -> None:
    query = "SELECT caption_id, video_id, text, shard, row, crc32 FROM captions ORDER BY caption_id"
    cursor = store.catalogue.connection.execute(query)
    while rows := cursor.fetchmany(_CAPTIONS_AT_ONCE):
        new = [row for row in rows if not writer.catalogue.has_caption(row[1], row[2])]
        if not new:
            continue
        features = [
            store.rows(CAPTIONS.name, Place(shard=shard, row=row, rows=1, crc32=crc32), f"caption {number}")
            for number, _, _, shard, row, crc32 in new
        ]
        writer.add_captions([(video_id, text) for _, video_id, text, *_ in new], _floats(np.concatenate(features)))
        report.captions += len(new)


def _merge_labels(writer: StoreWriter, store: _Input, report: MergeReport) -> None:
    tags: dict[str, list[str]] = {}
    for video_id, tag in store.catalogue.connection.execute("SELECT video_id, tag FROM tags ORDER BY 1, 2"):
        tags.setdefault(video_id, []).append(tag)
    writer.add_tags(tags)
    titles, known = store.catalogue.titles(), writer.catalogue.titles()
    others = [video_id for video_id, title in titles.items() if known.get(video_id, title) != title]
    report.notes += [f"video {v[:12]} has another title in {store.path}; the first store's is kept" for v in others]
    writer.add_titles(titles)


def _merge_transcripts(writer: StoreWriter, store: _Input) -> None:
    """Those in languages in which no store before had one."""
    for video_id in store.catalogue.states():
        if rows := store.catalogue.transcripts(video_id):
            known = writer.catalogue.transcript_sources(video_id)
            writer.set_transcripts({video_id: [row for row in rows if row.language not in known]})


def _merge_sources(writer: StoreWriter, store: _Input) -> None:
    known = {source.name for source in writer.catalogue.sources() if source.complete}
    writer.add_sources(source for source in store.catalogue.sources() if source.name not in known)
