"""Accepted videos that are not indexed yet, on disk: their bytes and what was sent with them.

    STORE/media/<sha256><ending>     the bytes of a video that came over HTTP, named by them, never by the client
    STORE/media/<sha256>.json        what was sent with it, until it is indexed
    STORE/media.lock                 held by the one service that accepts videos for this store

A video is accepted when both files are on the disk. Both are named by the video's id, whatever path the store is
reached by. Bytes of an id that neither a record nor the catalogue names were never acknowledged, or are left from an
interrupted deletion: they are removed when a service starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import filelock

from indexer.store import media
from model.durable import TEMPORARY_PREFIX, sync_folder, write_atomically
from service.errors import Overloaded
from service.media.files import media_type

logger = logging.getLogger(__name__)

MEDIA, LOCK = media.FOLDER, "media.lock"
_BLOCK_BYTES = 1 << 20
_REMOVING = ".removing-"
_ENDINGS = {
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
}
_RECORD = ".json"


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A video that was acknowledged. ``path`` is the file with its bytes."""

    video_id: str
    path: str
    size_bytes: int
    job_id: str
    title: str | None
    tags: tuple[str, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Received:
    """Bytes on the disk under a temporary name, not accepted yet."""

    path: Path
    video_id: str
    size_bytes: int


class UploadStore:
    """The folder of one store. Nothing is made on the disk before ``own``."""

    def __init__(self, store: Path) -> None:
        self.folder = store.absolute() / MEDIA
        self._lock = filelock.FileLock(store / LOCK, blocking=False, thread_local=False)

    @property
    def exists(self) -> bool:
        """Whether a video was ever accepted."""
        return self.folder.is_dir()

    @property
    def owned(self) -> bool:
        """Whether this service is the one that accepts videos."""
        return bool(self._lock.is_locked)

    def own(self) -> None:
        """Become the one service that accepts videos. Raises ``Overloaded`` if another one does."""
        if self.owned:
            return
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise Overloaded(
                f"another service accepts videos for the store {self.folder.parent.name!r}",
                expected="one service that changes a store; any number that search it",
                next_step="send changes to that service, or stop it",
                retry_after_seconds=10,
            ) from error
        self.folder.mkdir(exist_ok=True)

    def close(self) -> None:
        """Release the lock, so that another service can own the folder."""
        self._lock.release()

    def receive(self, upload: IO[bytes]) -> Received:
        """Copy an upload, positioned at its start, to disk, and compute its id."""
        path = self.folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(16)}"
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("xb") as file:
                while block := upload.read(_BLOCK_BYTES):
                    digest.update(block)
                    file.write(block)
                    size += len(block)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Received(path=path, video_id=digest.hexdigest(), size_bytes=size)

    def place_of(self, received: Received) -> Path:
        """The path of an accepted video's bytes; their first bytes decide the ending."""
        return self.folder / f"{received.video_id}{_ENDINGS.get(media_type(received.path), '.bin')}"

    def accept(self, received: Received, accepted: Accepted) -> None:
        """Accept a video durably."""
        received.path.replace(accepted.path)
        values = {**asdict(accepted), "path": Path(accepted.path).name}
        content = json.dumps(values, ensure_ascii=False).encode()
        write_atomically(self._record(accepted.video_id), content)  # syncs the folder, and so the other name

    def done(self, video_id: str) -> None:
        """Delete the record of a video that is in the catalogue now or was given up."""
        self._record(video_id).unlink(missing_ok=True)
        sync_folder(self.folder)

    def remove(self, video_id: str) -> None:
        """Remove the bytes of a video, unless a pending record or the catalogue names them.

        The decision is made by id with the files set aside, so that a process that commits their place meanwhile finds
        them missing and brings its own. Files outside the store are never touched.
        """
        files = [path for path in self.folder.glob(f"{video_id}.*") if media.video_of(path.name) == video_id]
        self._remove([(path, _aside(path)) for path in files])

    def clean(self) -> None:
        """Remove what no pending record and no catalogue entry names: uploads and removals that were cut short.

        Right after ``own``, before any ``receive``.
        """
        files = []
        for path in list(self.folder.iterdir()):
            if path.name.startswith(TEMPORARY_PREFIX):
                path.unlink(missing_ok=True)
            elif path.name.startswith(_REMOVING):
                files.append((path.with_name(path.name.removeprefix(_REMOVING)), path))
            elif media.video_of(path.name) is not None:
                files.append((path, _aside(path)))
        self._remove(files)

    def _remove(self, files: Sequence[tuple[Path, Path]]) -> None:
        """Each file is given with the name that it has while it is decided about."""
        named = self._named([path for path, _ in files])
        for path, aside in files:
            if path not in named and path.exists():
                path.replace(aside)
        moved = [(path, aside) for path, aside in files if aside.exists()]
        named = self._named([path for path, _ in moved])
        for path, aside in moved:
            if path in named and not path.exists():
                aside.replace(path)
            else:
                aside.unlink()  # nobody names it, or its bytes came again
        if moved:
            sync_folder(self.folder)

    def _named(self, paths: Sequence[Path]) -> set[Path]:
        """Those that belong to a pending or catalogued video; all of them if that cannot be found out."""
        from indexer.store import generation
        from indexer.store.catalogue import CatalogueReader

        ids = {path: media.video_of(path.name) or "" for path in paths}
        pending = {path for path in paths if self._record(ids[path]).exists()}
        if len(pending) == len(ids):
            return pending
        try:
            with closing(CatalogueReader.open_readonly(self.folder.parent / generation.CATALOGUE)) as catalogue:
                return pending | {path for path in paths if str(path) in catalogue.paths(ids[path])}
        except (ValueError, OSError, sqlite3.Error) as error:
            logger.warning("no file in %s is removed, because the catalogue cannot be read: %s", self.folder, error)
            return set(paths)

    def pending(self) -> list[Accepted]:
        """Accepted videos that are not done, oldest first."""
        records = sorted(self.folder.glob(f"*{_RECORD}"), key=lambda path: path.stat().st_mtime_ns)
        return [_accepted(path) for path in records]

    def _record(self, video_id: str) -> Path:
        return self.folder / f"{video_id}{_RECORD}"


def _accepted(path: Path) -> Accepted:
    values = json.loads(path.read_text(encoding="utf-8"))
    # By its name alone: the store may have moved, and records of earlier programs hold absolute paths.
    place = str(path.parent / Path(values["path"]).name)
    return Accepted(**{**values, "path": place, "tags": tuple(values["tags"]), "captions": tuple(values["captions"])})


def _aside(path: Path) -> Path:
    return path.with_name(f"{_REMOVING}{path.name}")
