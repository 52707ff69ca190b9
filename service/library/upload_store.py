"""Videos that were accepted and are not indexed yet: their bytes and what is to become of them, on the disk.

    STORE/media/<sha256><ending>     the bytes of a video that came over HTTP, named by them, never by the client
    STORE/media/<sha256>.json        what was asked for with it, until it is indexed
    STORE/media.lock                 held by the one service that takes videos in for this store

A video is accepted when both files are on the disk. Any other file there when a service starts was never
acknowledged, or is what a deletion that was cut short left behind, and is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import filelock

from model.durable import TEMPORARY_PREFIX, sync_folder, write_atomically
from service.errors import Overloaded
from service.media.files import media_type

MEDIA, LOCK = "media", "media.lock"
_BLOCK_BYTES = 1 << 20
_STORED = re.compile(r"([0-9a-f]{64})\.[a-z0-9]{2,4}")
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
        """Whether a video was ever taken in."""
        return self.folder.is_dir()

    @property
    def owned(self) -> bool:
        """Whether this service is the one that takes videos in."""
        return bool(self._lock.is_locked)

    def own(self) -> None:
        """Become the one service that takes videos in. Raises ``Overloaded`` if another one does."""
        if self.owned:
            return
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise Overloaded(
                f"another service takes in videos for the store {self.folder.parent.name!r}",
                expected="one service that changes a store; any number that search it",
                next_step="send changes to that service, or stop it",
                retry_after_seconds=10,
            ) from error
        self.folder.mkdir(exist_ok=True)

    def close(self) -> None:
        """Let another service do it."""
        self._lock.release()

    def receive(self, upload: IO[bytes]) -> Received:
        """Copy an upload, which stands at its start, to the disk, and find out which video it is."""
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
        """Make an acceptance durable."""
        received.path.replace(accepted.path)
        content = json.dumps(asdict(accepted), ensure_ascii=False).encode()
        write_atomically(self._record(accepted.video_id), content)  # syncs the folder, and so the other name

    def done(self, video_id: str) -> None:
        """Forget an acceptance: its video is in the catalogue, or will never be."""
        self._record(video_id).unlink(missing_ok=True)
        sync_folder(self.folder)

    def remove(self, paths: Collection[str]) -> None:
        """Remove the bytes at these places as far as they are ours; a user's own files are never touched."""
        ours = [Path(path) for path in paths if Path(path).parent == self.folder and _STORED.fullmatch(Path(path).name)]
        for path in ours:
            path.unlink(missing_ok=True)
        if ours:
            sync_folder(self.folder)

    def pending(self) -> list[Accepted]:
        """What was accepted and is not done, oldest first."""
        records = sorted(self.folder.glob(f"*{_RECORD}"), key=lambda path: path.stat().st_mtime_ns)
        return [_accepted(path) for path in records]

    def leftovers(self) -> list[Path]:
        """Bytes of no accepted video, and uploads that were cut short. Right after ``own``, before any ``receive``."""
        accepted = {accepted.path for accepted in self.pending()}
        return [
            path
            for path in self.folder.iterdir()
            if path.name.startswith(TEMPORARY_PREFIX)
            or (_STORED.fullmatch(path.name) and path.suffix != _RECORD and str(path) not in accepted)
        ]

    def _record(self, video_id: str) -> Path:
        return self.folder / f"{video_id}{_RECORD}"


def _accepted(path: Path) -> Accepted:
    values = json.loads(path.read_text(encoding="utf-8"))
    return Accepted(**{**values, "tags": tuple(values["tags"]), "captions": tuple(values["captions"])})
