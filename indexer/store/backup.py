"""Consistent backups of a store while it is served and written, and restoring them.

In: a store. Out: a folder with the same layout and ``backup.json``, which names every file with its size and SHA-256.
The copy holds one state of the catalogue, the current generation, every shard row that either of them names, and the
store's own media. Nothing is locked: what a catalogue transaction has named never changes, a generation never changes,
and a file that disappears while it is copied (a new publication, a compaction, a deleted video) starts the copy over.

Videos outside the store are not copied; the catalogue keeps their paths.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePath

from pydantic import BaseModel, ConfigDict, ValidationError

from indexer.errors import Damaged, NewerFormat, NotAStore, StoreError
from indexer.locations import Location
from indexer.store import generation, media
from indexer.store.catalogue import CatalogueReader
from indexer.store.reader import StoreReader
from indexer.store.shards import HEADER_BYTES, SHARD_KINDS, ShardKind, header
from indexer.store.writer import LOCK_HOLDER
from model.durable import sha256_of_file, sync_file, sync_folder, write_atomically

FORMAT = 1
LISTING = "backup.json"
MEDIA = media.FOLDER
ATTEMPTS = 5
_BLOCK_BYTES = 1 << 22

# Recreated when a store is opened, or owned by a running process.
_NOT_COPIED = frozenset(
    {generation.CATALOGUE, generation.CURRENT, generation.GENERATIONS, generation.FEATURES, MEDIA, LISTING}
)
_OF_A_PROCESS = (".lock", "-wal", "-shm", LOCK_HOLDER)

OnBytes = Callable[[int], None]


class BackupFile(BaseModel):
    """One file of a backup."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bytes: int
    sha256: str


class BackupListing(BaseModel):
    """``backup.json``. ``revision`` is the catalogue's; ``generation`` is None if nothing had been published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    created: str
    revision: int
    generation: str | None
    videos: int
    captions: int
    files: dict[str, BackupFile]


class BackupError(StoreError):
    """A backup cannot be made or restored; the message says what to do."""


def back_up(store: Path, target: Path, on_bytes: OnBytes = lambda count: None) -> BackupListing:
    """Copy ``store`` to the new folder ``target``, which appears when it is complete and was opened once.

    ``on_bytes`` is given the number of bytes just copied. Raises ``BackupError``, ``NotAStore``, ``Damaged``.
    """
    with _appearing(target) as work:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _copy(store, work, on_bytes)
            except FileNotFoundError as error:
                if attempt == ATTEMPTS:
                    raise BackupError(
                        f"{store} changed during each of {ATTEMPTS} attempts (last: {error.filename} was removed); "
                        "try again while nothing is compacted or published"
                    ) from error
                shutil.rmtree(work)
                work.mkdir()
    raise AssertionError("unreachable")


def restore(backup: Path, store: Path, on_bytes: OnBytes = lambda count: None) -> BackupListing:
    """Copy a backup to the new folder ``store``, every file compared with its checksum on the way.

    Raises ``BackupError`` for a folder that holds no backup, ``Damaged`` for one that was changed since it was made.
    """
    listing = read_listing(backup)
    with _appearing(store) as work:
        for name, expected in listing.files.items():
            source, copy = backup / name, work / name
            if not source.is_file():
                raise Damaged(f"{source} is missing; restore another backup")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_file(source, copy, on_bytes)
            if (found := _facts(copy)) != expected:
                raise Damaged(
                    f"{source} has {found.size_bytes} bytes and SHA-256 {found.sha256[:12]}…, expected "
                    f"{expected.size_bytes} and {expected.sha256[:12]}…: it was changed since the backup was made; "
                    "restore another backup"
                )
        _open_once(work, listing.generation)
    return listing


def read_listing(backup: Path) -> BackupListing:
    """What a backup holds. Raises ``BackupError``, ``Damaged`` or ``NewerFormat``."""
    path = backup / LISTING
    if not path.is_file():
        raise BackupError(f"{backup} holds no backup (no {LISTING}); make one with `emcl store backup`")
    try:
        listing = BackupListing.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Damaged(f"{path} cannot be read ({error.errors()[0]['msg']}); restore another backup") from error
    if listing.format > FORMAT:
        raise NewerFormat(f"{path} has format {listing.format}, this program reads {FORMAT}; use a newer release")
    for name in listing.files:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise Damaged(f"{path} names {name!r}, which is outside of the backup; restore another backup")
    return listing


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, as far as they can be read: about how much there is to copy."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # removed meanwhile
                found += (Path(parent) / name).stat().st_size
    return found


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block succeeds, and is removed when it does not."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackupError(f"{target} exists and is not empty; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.partial-{os.getpid()}")
    work.mkdir()
    try:
        yield work
        for folder, _, _ in os.walk(work, topdown=False):
            sync_folder(Path(folder))
        work.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy(store: Path, work: Path, on_bytes: OnBytes) -> BackupListing:
    # The generation first: a catalogue may be newer than the generation, never older.
    name = generation.current_name(store) if (store / generation.CURRENT).exists() else None
    needed: dict[str, dict[int, int]] = {kind.name: {} for kind in SHARD_KINDS}
    if name is not None:
        folder = store / generation.GENERATIONS / name
        manifest = generation.read_manifest(folder)
        copied = work / generation.GENERATIONS / name
        copied.mkdir(parents=True)
        for file in sorted(folder.iterdir()):
            copy_file(file, copied / file.name, on_bytes)
        (work / generation.CURRENT).write_text(f"{name}\n", encoding="utf-8")
        for kind in SHARD_KINDS:
            needed[kind.name] = dict(generation.shards_of_kind(manifest, kind))
    if not (store / generation.CATALOGUE).exists():
        raise NotAStore(f"{store} holds no store (no {generation.CATALOGUE}); nothing was copied")
    with closing(CatalogueReader.open_readonly(store / generation.CATALOGUE)) as catalogue:
        catalogue.copy_to(work / generation.CATALOGUE)
    with closing(CatalogueReader.open_readonly(work / generation.CATALOGUE)) as catalogue:
        settings, revision = catalogue.settings, catalogue.revision
        own = {PurePath(location.path).name for location in catalogue.locations() if _is_own(location)}
        for kind in SHARD_KINDS:
            for shard, rows in catalogue.shard_rows(kind.name).items():
                needed[kind.name][shard] = max(rows, needed[kind.name].get(shard, 0))
    if settings is not None:
        for kind in SHARD_KINDS:
            for shard, rows in needed[kind.name].items():
                _copy_rows(store, work, kind, shard, rows, settings.dim, on_bytes)
    _copy_media(store, work, own, on_bytes)
    for path in sorted(store.iterdir()):
        if path.is_file() and path.name not in _NOT_COPIED and not path.name.endswith(_OF_A_PROCESS):
            copy_file(path, work / path.name, on_bytes)
    for name_of in (generation.GENERATIONS, generation.FEATURES):
        (work / name_of).mkdir(exist_ok=True)
    counts = _open_once(work, name)
    return _list_files(work, name, revision, counts)


def _copy_rows(store: Path, work: Path, kind: ShardKind, shard: int, rows: int, dim: int, on_bytes: OnBytes) -> None:
    """The committed rows of a shard, under a header that names just them: later rows may be half written."""
    name = kind.file_name(shard)
    left = rows * kind.row_bytes(dim)
    copy = work / generation.FEATURES / name
    copy.parent.mkdir(exist_ok=True)
    with (store / generation.FEATURES / name).open("rb") as source, copy.open("wb") as target:
        source.seek(HEADER_BYTES)
        target.write(header(rows, dim, kind.dtype))
        while left:
            block = source.read(min(left, _BLOCK_BYTES))
            if not block:
                raise Damaged(
                    f"{store / generation.FEATURES / name} ends {left} bytes before its {rows} committed rows do; "
                    "run `emcl index verify`"
                )
            target.write(block)
            left -= len(block)
            on_bytes(len(block))
        target.flush()
        os.fsync(target.fileno())


def _copy_media(store: Path, work: Path, own: set[str], on_bytes: OnBytes) -> None:
    """The store's own files. One that no committed video names may be gone again, for it was deleted or refused."""
    folder = store / MEDIA
    if not folder.is_dir():
        return
    (work / MEDIA).mkdir()
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        try:
            copy_file(path, work / MEDIA / path.name, on_bytes)
        except FileNotFoundError:
            if path.name in own:
                raise


def _is_own(location: Location) -> bool:
    place = PurePath(location.path)
    return place.parent.name == media.FOLDER and media.video_of(place.name) == location.video_id


def copy_file(source: Path, target: Path, on_bytes: OnBytes) -> None:
    """Copy a file and make the copy durable; ``on_bytes`` is called for every block."""
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(_BLOCK_BYTES):
            writing.write(block)
            on_bytes(len(block))
    sync_file(target)


def _open_once(work: Path, name: str | None) -> tuple[int, int]:
    """Open a copy as a reader would; returns its numbers of videos and captions. Raises ``Damaged``."""
    if name is None:
        return 0, 0
    with StoreReader.open(work) as reader:
        return reader.count_videos(), reader.count_captions()


def _list_files(work: Path, name: str | None, revision: int, counts: tuple[int, int]) -> BackupListing:
    files = {
        str(path.relative_to(work)): _facts(path)
        for path in sorted(work.rglob("*"))
        if path.is_file() and not path.name.endswith(_OF_A_PROCESS)
    }
    listing = BackupListing(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=revision,
        generation=name,
        videos=counts[0],
        captions=counts[1],
        files=files,
    )
    write_atomically(work / LISTING, (listing.model_dump_json(indent=1) + "\n").encode())
    return listing


def _facts(path: Path) -> BackupFile:
    return BackupFile(size_bytes=path.stat().st_size, sha256=sha256_of_file(path))
