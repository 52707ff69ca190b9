"""Writing a store: one process at a time adds features, commits them, and publishes generations.

The order that must never change: rows are appended to the shards and synced to disk, then one catalogue transaction
names them, then (later) a generation is published. Whatever a killed run leaves outside that order is truncated or
deleted when the next writer opens the store.

After ``emcl index compact``, once the last generation from before it is gone, some shard files are named neither by the
catalogue nor by a generation; the writer deletes them too. A reader that still maps such a file can go on reading it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged, FeatureError, NotAStore, StoreLocked
from indexer.locations import Location, SourceRow
from indexer.sources.download_buffer import FOLDER as DOWNLOADS
from indexer.store import generation
from indexer.store.catalogue import Catalogue, CatalogueReader
from indexer.store.config import Manifest, StoreSettings, refuse_differences
from indexer.store.records import CaptionRow, SegmentRow, TranscriptRow, VideoRow
from indexer.store.shards import CAPTIONS, FRAMES, POOLED, SHARD_BYTES, SHARD_KINDS, ShardWriter, to_half
from model.video.recording import UNKNOWN_RECORDING, Recording

if TYPE_CHECKING:
    from model.emcl.em import FrozenMap

logger = logging.getLogger(__name__)

LOCK, LOCK_HOLDER = "writer.lock", "writer.json"


def unnamed(store: Path, catalogue: CatalogueReader) -> list[Path]:
    """Shards that may be removed; none while a kept generation cannot be read, because its shards are unknown then."""
    named = {kind.file_name(n) for kind in SHARD_KINDS for n in catalogue.shard_rows(kind.name)}
    try:
        folders = generation.kept(store) if (store / generation.CURRENT).exists() else []
        for folder in folders:
            named.update(generation.read_manifest(folder).shards)
    except Damaged:
        return []
    # A shard after the last one is not a former one: it belongs to the run in progress.
    last = {kind.name: max(catalogue.shard_rows(kind.name), default=-1) for kind in SHARD_KINDS}
    former = (
        store / generation.FEATURES / kind.file_name(number)
        for kind in SHARD_KINDS
        for number in range(last[kind.name])
    )
    return [path for path in former if path.name not in named and path.exists()]


def remove_unnamed(store: Path, catalogue: CatalogueReader) -> int:
    """Remove them. Returns the bytes that became free."""
    size_bytes = 0
    for path in unnamed(store, catalogue):
        size_bytes += path.stat().st_size
        path.unlink()
    return size_bytes


@dataclass(frozen=True, kw_only=True)
class EncodedSegment:
    """A segment with its features: ``features_FD`` raw, ``pooled_D`` raw, ``timestamps_seconds`` ``(F,)``."""

    number: int
    start_seconds: float
    end_seconds: float
    timestamps_seconds: npt.NDArray[np.float64]
    features_FD: npt.NDArray[np.floating]
    pooled_D: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EncodedVideo:
    """A video with all its segments. ``reason`` notes what could not be read of it, None if all could.

    ``transcripts`` are of its own subtitle tracks, ``recording`` is what it says about itself.
    """

    video_id: str
    name: str
    duration_seconds: float
    width: int
    height: int
    reason: str | None
    segments: Sequence[EncodedSegment]
    transcripts: Sequence[TranscriptRow] = ()
    recording: Recording = UNKNOWN_RECORDING


class StoreWriter:
    """The open store of the one writer. Use as a context manager.

    ``shards`` are the files that rows are appended to, by kind; ``indexer.store.compact`` works on them.
    """

    def __init__(
        self, path: Path, catalogue: Catalogue, settings: StoreSettings, lock: filelock.BaseFileLock, shard_bytes: int
    ) -> None:
        """Use ``StoreWriter.open``."""
        self.path = path
        self.settings = settings
        self.catalogue = catalogue
        self._lock = lock
        shutil.rmtree(path / DOWNLOADS, ignore_errors=True)  # of a run that was killed: nobody else writes
        generation.clean_up(path)
        remove_unnamed(path, catalogue)
        self.shards = {
            kind.name: ShardWriter(
                folder=path / generation.FEATURES,
                kind=kind,
                dim=settings.dim,
                rows=catalogue.shard_rows(kind.name),
                max_bytes=shard_bytes,
            )
            for kind in SHARD_KINDS
        }

    @classmethod
    def open(
        cls, path: str | Path, *, settings: StoreSettings | None = None, shard_bytes: int = SHARD_BYTES
    ) -> StoreWriter:
        """Open the store in ``path`` for writing and repair what a killed run left.

        With ``settings`` the store is created if there is none, and must agree with them if there is one. Raises
        ``StoreLocked``, ``NotAStore``, ``NewerFormat``, ``SettingsConflict`` or ``Damaged``.
        """
        path = Path(path)
        if settings is None and not (path / generation.CATALOGUE).exists():
            raise NotAStore(f"{path} holds no store; make one with `emcl index build PATH --store {path}`")
        (path / generation.FEATURES).mkdir(parents=True, exist_ok=True)
        lock = acquire_lock(path)
        try:
            catalogue = Catalogue.open(path / generation.CATALOGUE, create=settings is not None)
        except BaseException:
            lock.release()
            raise
        try:
            return cls(path, catalogue, _agree(catalogue, settings, path), lock, shard_bytes)
        except BaseException:
            catalogue.close()
            lock.release()
            raise

    def close(self) -> None:
        """Release the files, the catalogue and the lock; each of them also if another cannot be released in order."""
        with ExitStack() as stack:
            stack.callback(self._lock.release)
            stack.callback((self.path / LOCK_HOLDER).unlink, missing_ok=True)
            stack.callback(self.catalogue.close)
            for shard in self.shards.values():
                stack.callback(shard.close)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_locations(self, found: Sequence[Location], forgotten: Sequence[str] = ()) -> None:
        """Record where videos are (new ones become ``pending``), and drop places where they no longer are."""
        if not found and not forgotten:
            return
        with self.catalogue.transaction():
            self.catalogue.forget_locations(forgotten)
            for location in found:
                self.catalogue.add_location(location)

    def add_pending(self, sizes: Mapping[str, int]) -> None:
        """Record videos that are not known yet, by id with their size in bytes."""
        if sizes:
            with self.catalogue.transaction():
                for video_id, size_bytes in sizes.items():
                    self.catalogue.add_pending(video_id, size_bytes)

    def add_videos(self, videos: Sequence[EncodedVideo]) -> dict[str, str]:
        """Store the features of pending videos and commit them together.

        A video whose features cannot be stored (overflow of half precision, NaN, wrong dimension) is recorded as
        failed; returns the reasons by video id.
        """
        rows, failures = [], {}
        for video in videos:
            try:
                rows.append(self._append(video))
            except FeatureError as error:
                failures[video.video_id] = str(error)
        with self._committing(FRAMES.name, POOLED.name):
            for row in rows:
                self.catalogue.add_video(row)
            for video_id, reason in failures.items():
                self.catalogue.fail_video(video_id, reason)
        return failures

    def fail_video(self, video_id: str, reason: str) -> None:
        """Record why a video could not be indexed."""
        if self.catalogue.failure(video_id) != reason:
            with self.catalogue.transaction():
                self.catalogue.fail_video(video_id, reason)

    def add_captions(self, captions: Sequence[tuple[str | None, str]], features_ND: npt.NDArray[np.float32]) -> None:
        """Store captions, given as (video id or None, text), with their raw text features ``(N, D)``."""
        rows = []
        for (video_id, text), feature_D in zip(captions, features_ND, strict=True):
            self._check(feature_D[None], f"caption {text!r}")
            place = self.shards[CAPTIONS.name].append(feature_D[None].astype("<f4"))
            rows.append(CaptionRow(video_id=video_id, text=text, place=place))
        with self._committing(CAPTIONS.name):
            self.catalogue.add_captions(rows)

    def add_tags(self, tags: Mapping[str, Iterable[str]]) -> None:
        """Add tags to videos, by video id; those that a video has already change nothing."""
        given = [(video_id, tag) for video_id, names in tags.items() for tag in names]
        new = [(video_id, tag) for video_id, tag in given if not self.catalogue.has_tag(video_id, tag)]
        if new:
            with self.catalogue.transaction():
                self.catalogue.add_tags(new)

    def set_recordings(self, recordings: Mapping[str, Recording]) -> None:
        """Record what indexed videos say about themselves, by video id."""
        if recordings:
            with self.catalogue.transaction():
                for video_id, recording in recordings.items():
                    self.catalogue.set_recording(video_id, recording)

    def add_titles(self, titles: Mapping[str, str]) -> None:
        """Give titles to videos that have none, by video id."""
        new = {video_id: title for video_id, title in titles.items() if not self.catalogue.has_title(video_id)}
        if new:
            with self.catalogue.transaction():
                for video_id, title in new.items():
                    self.catalogue.set_title(video_id, title)

    def add_sources(self, sources: Iterable[SourceRow]) -> None:
        """Record the state of tar shards and URLs, where it changed."""
        new = [source for source in sources if self.catalogue.source(source.name) != source]
        if new:
            with self.catalogue.transaction():
                for source in new:
                    self.catalogue.add_source(source)

    def edit_video(self, video_id: str, *, tags: Iterable[str] | None = None, title: str | None = None) -> None:
        """Give a video exactly these tags, or this title (empty: none of its own); None leaves either as it is."""
        with self.catalogue.transaction():
            if tags is not None:
                self.catalogue.set_tags(video_id, tags)
            if title is not None:
                self.catalogue.set_title(video_id, title or None)

    def set_transcripts(
        self, transcripts: Mapping[str, Sequence[TranscriptRow]], removed: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Give videos these transcripts in place of those in the same languages, and forget ``removed``, given as
        (video id, language); all in one transaction.
        """
        removed = list(removed)
        if not removed and not any(transcripts.values()):
            return
        with self.catalogue.transaction():
            for video_id, language in removed:
                self.catalogue.remove_transcript(video_id, language)
            for video_id, rows in transcripts.items():
                for row in rows:
                    self.catalogue.set_transcript(video_id, row)

    def remove_captions(self, caption_ids: Sequence[int]) -> None:
        """Remove captions. Their rows in the shards stay as unused space."""
        if caption_ids:
            with self.catalogue.transaction():
                self.catalogue.remove_captions(caption_ids)

    def remove_videos(self, video_ids: Sequence[str]) -> None:
        """Remove videos with their captions. Their rows in the shards stay as unused space.

        The next build over the files, tar shards or URLs that they came from indexes them again.
        """
        if not video_ids:
            return
        with self.catalogue.transaction():
            for video_id in video_ids:
                self.catalogue.remove_video(video_id)

    def change_settings(self, settings: StoreSettings) -> None:
        """Use another kind of FAISS index, or another name for the same model, from the next ``publish`` on."""
        fixed = {"model_spec", "factory", "options", "index_memory", "index_recall"}
        assert settings.model_dump(exclude=fixed) == self.settings.model_dump(exclude=fixed), settings
        if settings != self.settings:
            with self.catalogue.transaction():
                self.catalogue.save_settings(settings)
            self.settings = settings

    def publish(
        self,
        mapper: generation.RowMapper,
        progress: Callable[[str], None] = lambda _: None,
        *,
        empty_map: FrozenMap | None = None,
    ) -> Manifest:
        """Make everything committed so far searchable; see ``generation.publish``."""
        manifest = generation.publish(self.path, self.catalogue, self.settings, mapper, progress, empty_map=empty_map)
        self.tidy()
        return manifest

    def tidy(self) -> None:
        """After a publication: remove generations that are no longer kept, shards that only they named, and the log of
        changes that all others hold.

        ``publish`` does it by itself. A publication from a connection of its own (``generation.publish`` beside this
        writer, in another thread of the process that holds the lock) is followed by this.
        """
        generation.clean_up(self.path)
        remove_unnamed(self.path, self.catalogue)
        kept = [generation.read_manifest(path) for path in generation.kept(self.path)]
        self.catalogue.forget_changes(min(manifest.revision for manifest in kept))

    def _append(self, video: EncodedVideo) -> VideoRow:
        assert video.segments, f"video {video.video_id} has no segment"
        return VideoRow(
            video_id=video.video_id,
            duration_seconds=video.duration_seconds,
            width=video.width,
            height=video.height,
            reason=video.reason,
            segments=[self._append_segment(video, segment) for segment in video.segments],
            transcripts=video.transcripts,
            recording=video.recording,
        )

    def _append_segment(self, video: EncodedVideo, segment: EncodedSegment) -> SegmentRow:
        what = f"{video.name}, segment {segment.number}"
        self._check(segment.features_FD, what)
        self._check(segment.pooled_D[None], what)
        assert len(segment.features_FD) == len(segment.timestamps_seconds), what
        return SegmentRow(
            number=segment.number,
            start_seconds=segment.start_seconds,
            end_seconds=segment.end_seconds,
            timestamps_seconds=segment.timestamps_seconds,
            frames=self.shards[FRAMES.name].append(to_half(segment.features_FD, what=what)),
            pooled=self.shards[POOLED.name].append(segment.pooled_D[None].astype("<f4")),
        )

    def _check(self, rows_ND: npt.NDArray[np.floating], what: str) -> None:
        if rows_ND.ndim != 2 or rows_ND.shape[1] != self.settings.dim or len(rows_ND) == 0:
            raise FeatureError(f"{what}: features have shape {rows_ND.shape}, expected (rows, {self.settings.dim})")
        if not np.isfinite(rows_ND).all():
            raise FeatureError(f"{what}: features hold NaN or infinity; load the checkpoint in fp32, or retrain it")

    @contextmanager
    def _committing(self, *kinds: str) -> Iterator[None]:
        """Sync shards first, then commit the transaction that names their rows."""
        for kind in kinds:
            self.shards[kind].sync()
        with self.catalogue.transaction():
            yield
            self.catalogue.set_shard_rows({kind: self.shards[kind].rows for kind in kinds})


def _agree(catalogue: Catalogue, wanted: StoreSettings | None, path: Path) -> StoreSettings:
    """The settings of the store; while nothing was encoded or published, ``wanted``. Raises ``SettingsConflict``."""
    recorded = catalogue.settings
    if wanted is None:
        if recorded is None:
            raise NotAStore(f"{path} was never given its settings; run `emcl index build PATH --store {path}`")
        return recorded
    if recorded is not None and catalogue.is_settled():
        old, new = (settings.model_dump(exclude={"model_spec"}) for settings in (recorded, wanted))
        refuse_differences(path, old, new)  # the same model under another name does not conflict
        return recorded
    if recorded != wanted:
        with catalogue.transaction():
            catalogue.save_settings(wanted)
    return wanted


def acquire_lock(path: Path) -> filelock.BaseFileLock:
    """Become the one writer of the store in ``path``. Raises ``StoreLocked`` that says who it is instead."""
    lock = filelock.FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise StoreLocked(
            f"{path} is being written by {_holder(path)}; wait until it has finished. Searching continues meanwhile"
        ) from error
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (path / LOCK_HOLDER).write_text(json.dumps(holder), encoding="utf-8")
    return lock


def _holder(path: Path) -> str:
    try:
        holder = json.loads((path / LOCK_HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # the holder has just begun or just ended
        return "another process"
