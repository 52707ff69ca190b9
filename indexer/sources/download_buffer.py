"""Download buffer: copies members of tar shards and remote videos to the disk ahead of decoding.

In: shards and URLs. Out: a location for each video to decode, with a temporary copy that is removed when the video is
done. Threads read ahead until ``BUFFER_BYTES`` are on the disk; each source is read once, from its first byte to its
last. Known videos are skipped, and an unchanged source is not read at all.

An error in a source or a member is recorded with its reason and the others continue; a full disk stops the run.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import IO

from indexer.errors import SourceError, StoreError
from indexer.locations import Location, SourceRow, member_path, possible_sources, shard_of
from indexer.sources.discover import PackedSource
from indexer.sources.tar import LARGEST_TEXT_BYTES, Labels, Readable, TarMember, key_of, read_members
from indexer.sources.url import UNKNOWN, RemoteFiles, RemoteInfo, version_number
from model.durable import open_regular
from model.video.formats import SUFFIXES

BUFFER_FILES = 256
"""Most copies at a time: far more than are decoded, few enough to be read again after a kill."""


class RunEnded(Exception):  # noqa: N818 - what it is
    """The run has ended."""


class Budget:
    """Budget of bytes on the disk: further copies wait. A single copy is always allowed, whatever its size."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._reserved: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def check_open(self) -> None:
        """Raise ``RunEnded`` if it has."""
        if self._closed:
            raise RunEnded

    def reserve(self, name: str, size_bytes: int) -> None:
        """Wait until a copy may be made. Raises ``RunEnded``."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(size_bytes))
            if self._closed:
                raise RunEnded
            self._reserved[name] = size_bytes

    def release(self, name: str) -> None:
        """Release the space of a copy."""
        with self._changed:
            self._reserved.pop(name, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Wake all waiting threads: the run has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, size_bytes: int) -> bool:
        if len(self._reserved) >= BUFFER_FILES:
            return False
        return not self._reserved or sum(self._reserved.values()) + size_bytes <= self._limit_bytes


class Countdown:
    """Calls ``at_zero`` when all are done."""

    def __init__(self, count: int, at_zero: Callable[[], None]) -> None:
        self._count = count
        self._at_zero = at_zero
        self._lock = threading.Lock()

    def one_less(self) -> None:
        """Count one as done."""
        with self._lock:
            self._count -= 1
            zero = self._count == 0
        if zero:
            self._at_zero()


FOLDER = "staging"

BUFFER_BYTES = 8 << 30
"""Most bytes of copies at a time, and so the largest video that is read from a shard or a URL."""

READERS = 4
"""Sources that are read at the same time."""

SHOWN_REASONS = 5

_TEXT_SUFFIXES = (".txt", ".json")

_BLOCK_BYTES = 1 << 20

Wanted = Callable[[Location], bool]
"""Whether a location that is known and unchanged has to be read all the same."""


@dataclass(kw_only=True)
class SourceResult:
    """What became of one source: ``row`` for the catalogue, None if it was unchanged and not read.

    ``videos`` are the ids of its videos by key, ``names`` their names by id, ``paths`` the places with
    their ids, ``former`` the places that it had, ``unread`` what could not be read.
    """

    source: PackedSource
    row: SourceRow | None = None
    labels: Labels = field(default_factory=Labels)
    videos: dict[str, list[str]] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    former: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


class DownloadBuffer:
    """The copies of one run, in a folder of the store. Use as a context manager."""

    def __init__(
        self,
        store: Path,
        remote: RemoteFiles,
        known: Mapping[str, Location],
        sources: Mapping[str, SourceRow],
        wanted: Wanted,
    ) -> None:
        self._folder = store / FOLDER
        self._remote = remote
        self._known = known
        self._sources = sources
        self._wanted = wanted
        self._budget = Budget(BUFFER_BYTES)
        self._numbers = itertools.count()
        self._queue: SimpleQueue[Location | BaseException | None] = SimpleQueue()
        self._members: dict[str, list[Location]] = {}
        for location in known.values():
            self._members.setdefault(self._source_of(location.path), []).append(location)

    def __enter__(self) -> DownloadBuffer:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a run that was killed
        self._folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.close()
        self._queue.put(None)  # for a thread that waits for the next location
        shutil.rmtree(self._folder, ignore_errors=True)

    def download(self, sources: Sequence[PackedSource], results: list[SourceResult]) -> Iterator[Location]:
        """Locations to decode, in whatever order they are there; ``results`` is filled until the end."""
        if not sources:
            return
        readers = ThreadPoolExecutor(min(READERS, len(sources)), thread_name_prefix="download")
        waiting = Countdown(len(sources), lambda: self._queue.put(None))

        def work(source: PackedSource) -> None:
            try:
                self._budget.check_open()
                results.append(self._read(source))
            except RunEnded:
                pass
            except BaseException as error:  # raised in the thread that asks for locations
                self._budget.close()
                self._queue.put(error)
            finally:
                waiting.one_less()

        try:
            for source in sources:
                readers.submit(work, source)
            while (item := self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        except BaseException:
            self._budget.close()
            raise
        finally:
            readers.shutdown(cancel_futures=True)

    def release(self, location: Location) -> None:
        """Remove the copy of a video that is done, unless it was moved away."""
        assert location.file is not None, location
        Path(location.file).unlink(missing_ok=True)
        self._budget.release(location.file)

    def _read(self, source: PackedSource) -> SourceResult:
        known = self._members.get(source.name, [])
        result = SourceResult(source=source, former=[place.path for place in known])
        info, reason = RemoteInfo(size_bytes=UNKNOWN, version=UNKNOWN), None
        try:
            info = self._info(source)
            if self._is_unchanged(source, info):
                result.paths = {place.path: place.video_id for place in known}
                return result
            with self._open(source, info) as stream:
                if source.is_shard:
                    self._read_shard(stream, info, result)
                else:
                    self._take(source.name, source.name, info.size_bytes, info.version, stream, result)
        except SourceError as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or str(error)
        result.row = SourceRow(
            name=source.name,
            size_bytes=info.size_bytes,
            version=info.version,
            complete=reason is None,
            reason=reason or _listed([*result.unread, *result.labels.unusable]),
        )
        return result

    def _source_of(self, path: str) -> str:
        """What a place belongs to, of what was read before; by its form where a run was cut short."""
        recorded = (name for name in possible_sources(path) if name in self._sources)
        return next(recorded, None) or shard_of(path) or path

    def _is_unchanged(self, source: PackedSource, info: RemoteInfo) -> bool:
        """Whether it was read to its end as it is now, and nothing of it is wanted once more."""
        known = self._sources.get(source.name)
        return (
            known is not None
            and known.complete
            and info.version != UNKNOWN
            and (known.size_bytes, known.version) == (info.size_bytes, info.version)
            and not any(self._wanted(place) for place in self._members.get(source.name, []))
        )

    def _read_shard(self, stream: IO[bytes], info: RemoteInfo, result: SourceResult) -> None:
        shard = result.source.name
        for member in read_members(stream):
            self._budget.check_open()
            if isinstance(member, str):
                result.unread.append(member)
                continue
            suffix = PurePosixPath(member.name).suffix.lower()
            if suffix in _TEXT_SUFFIXES:
                self._label(shard, member, result)
            elif suffix in SUFFIXES:
                path = member_path(shard, member.name)
                try:
                    self._take(path, member.name, member.size_bytes, info.version, member.file, result)
                except _TooLargeError as error:
                    result.unread.append(f"member {member.name[:200]!r}: {error}")

    def _label(self, shard: str, member: TarMember, result: SourceResult) -> None:
        if member.size_bytes > LARGEST_TEXT_BYTES:
            path = member_path(shard, member.name)
            result.labels.unusable.append(f"{path}: it has more than {LARGEST_TEXT_BYTES} bytes")
            return
        result.labels.add(shard, member.name, member.file.read())

    def _take(
        self, path: str, name: str, size_bytes: int, version: int, stream: Readable, result: SourceResult
    ) -> None:
        """Note a video, and hand its copy over unless it is known."""
        known = self._known.get(path)
        if (
            known is None
            or version == UNKNOWN
            or (known.size_bytes, known.modified_ns) != (size_bytes, version)
            or self._wanted(known)
        ):
            known = self._copy(path, size_bytes, version, stream)
            self._queue.put(known)
        result.videos.setdefault(key_of(name), []).append(known.video_id)
        result.paths[path] = known.video_id
        result.names[known.video_id] = PurePosixPath(name.partition("?")[0]).stem

    def _copy(self, path: str, size_bytes: int, version: int, stream: Readable) -> Location:
        reserved = BUFFER_BYTES if size_bytes == UNKNOWN else size_bytes
        if reserved > BUFFER_BYTES:
            raise _TooLargeError(f"it has {size_bytes} bytes, at most {BUFFER_BYTES} are read from a shard or a URL")
        file = str(self._folder / f"staged-{next(self._numbers)}")
        self._budget.reserve(file, reserved)
        try:
            digest, written = self._write(Path(file), stream, reserved)
            if size_bytes not in (UNKNOWN, written):
                raise SourceError(f"{path} ends after {written} of {size_bytes} bytes")
        except BaseException:
            Path(file).unlink(missing_ok=True)
            self._budget.release(file)
            raise
        return Location(path=path, video_id=digest, size_bytes=written, modified_ns=version, file=file)

    def _write(self, file: Path, stream: Readable, most_bytes: int) -> tuple[str, int]:
        """SHA-256 and length of what was copied."""
        digest, written = hashlib.sha256(), 0
        with _created(file) as copy:
            while block := stream.read(_BLOCK_BYTES):
                self._budget.check_open()
                digest.update(block)
                written += len(block)
                if written > most_bytes:
                    raise _TooLargeError(f"it has more than {most_bytes} bytes")
                append(copy, block)
        return digest.hexdigest(), written

    def _info(self, source: PackedSource) -> RemoteInfo:
        if source.is_url:
            return self._remote.info(source.name)
        found = Path(source.name).stat()
        return RemoteInfo(size_bytes=found.st_size, version=version_number(str(found.st_mtime_ns)))

    def _open(self, source: PackedSource, info: RemoteInfo) -> IO[bytes]:
        return self._remote.open(source.name, info.size_bytes) if source.is_url else open_regular(Path(source.name))


class _TooLargeError(SourceError):
    """Larger than what may be copied."""


def _created(file: Path) -> IO[bytes]:
    try:
        return file.open("xb", buffering=0)  # so that write() itself reports a full disk
    except FileNotFoundError as error:
        raise RunEnded from error  # the folder is gone, because the run has ended
    except OSError as error:
        raise no_copy(error) from error


def append(copy: IO[bytes], block: bytes) -> None:
    """Append a block to a copy. Raises ``StoreError`` if the disk is full."""
    view = memoryview(block)
    try:
        while view:
            view = view[copy.write(view) :]
    except OSError as error:
        raise no_copy(error) from error


def no_copy(error: OSError) -> StoreError:
    """The error of a copy that cannot be written."""
    return StoreError(
        f"the copy of a video cannot be written beside the store ({error.strerror}); committed work is kept: free some "
        "space and run the same command again"
    )


def _listed(reasons: Sequence[str]) -> str | None:
    if not reasons:
        return None
    more = f"; and {len(reasons) - SHOWN_REASONS} more" if len(reasons) > SHOWN_REASONS else ""
    return "; ".join(reasons[:SHOWN_REASONS]) + more
