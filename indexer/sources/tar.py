"""Tar shards as WebDataset has them: members that belong together share everything before the first dot of their name.

``KEY.mp4`` (or another suffix of a video) is a video, ``KEY.txt`` holds its captions, one a line, ``KEY.json`` an
object with ``captions`` (or ``caption``), ``tags`` and ``title``; other members are passed over. The webdataset library
is made for training (shuffled samples, decoded in its own workers, an error skips or ends the stream), and does not
report what became of which member; Python's tarfile reads the same files.

A tar file may come from anywhere. It is read from front to back as a stream. Nothing is written under a member's name,
only regular members are read, and what could make reading them costly (long headers, sparse maps) ends the shard.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any, Protocol, Self

from indexer.errors import SourceError
from indexer.locations import SEPARATOR
from indexer.sources.captions import strings_of

LARGEST_HEADER_BYTES = 1 << 16
LARGEST_TEXT_BYTES = 1 << 20
MOST_HEADERS_AT_ONCE = 16
"""Headers that say something of the one after them; tarfile reads each inside the one before."""

_LONG_HEADERS = frozenset(
    (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
)


class Readable(Protocol):
    """What bytes are read from, until there are none."""

    def read(self, size: int = -1, /) -> bytes:
        """At most so many bytes; all with -1."""
        ...


@dataclass(frozen=True, kw_only=True)
class TarMember:
    """A regular member. ``file`` can be read until the next one is asked for; that raises ``SourceError``."""

    name: str
    size_bytes: int
    file: Readable


@dataclass(kw_only=True)
class Labels:
    """What the texts of one shard say, by key; and what could not be used of them."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)

    def add(self, shard: str, name: str, content: bytes) -> None:
        """Read ``KEY.txt`` or ``KEY.json``."""
        key, suffix = key_of(name), PurePosixPath(name).suffix.lower()
        try:
            if suffix == ".txt":
                lines = [line.strip() for line in content.decode("utf-8-sig").split("\n")]
                self.captions.setdefault(key, []).extend(line for line in lines if line)
                return
            record = json.loads(content.decode("utf-8-sig"))
            if not isinstance(record, dict):
                raise ValueError(f"expected an object, got {type(record).__name__}")
            self.captions.setdefault(key, []).extend(strings_of(record, "captions"))
            self.captions[key].extend(strings_of(record, "caption"))
            self.tags.setdefault(key, []).extend(strings_of(record, "tags"))
            title = record.get("title")
            if isinstance(title, str) and title.strip():
                (self.titles[key],) = strings_of(record, "title")
        except (ValueError, RecursionError) as error:
            self.unusable.append(f"{shard}{SEPARATOR}{name}: {error}")


def read_members(stream: IO[bytes]) -> Iterator[TarMember | str]:
    """The regular members of a shard in their order; a text says why a member is not read.

    Raises ``SourceError`` where the shard cannot be read any further.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedInfo) as tar:
            while (found := tar.next()) is not None:
                tar.__dict__["members"] = []  # tarfile remembers all of them
                if found.isdir():
                    continue
                problem = _problem(found)
                if problem is not None:
                    yield f"member {found.name[:200]!r} {problem}"
                    continue
                file = tar.extractfile(found)
                assert file is not None, found
                yield TarMember(name=found.name, size_bytes=found.size, file=_MemberFile(file))
    except SourceError:
        raise
    except (tarfile.TarError, EOFError, OverflowError, ValueError) as error:  # the last for numbers in headers
        raise SourceError(f"it is damaged or not a tar file: {error}") from error


def key_of(name: str) -> str:
    """``dir/clip.left`` → ``dir/clip``: all before the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


class _MemberFile:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._file.read(size)
        except (tarfile.TarError, EOFError) as error:
            raise SourceError(f"it is cut off or damaged: {error}") from error


class _BoundedInfo(tarfile.TarInfo):
    """Refuses headers that could make tarfile read, store or recurse without limit."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        depth = tar.__dict__.get("headers_at_once", 0)
        if depth > MOST_HEADERS_AT_ONCE:
            raise SourceError(f"it is damaged: more than {MOST_HEADERS_AT_ONCE} headers of one member")
        tar.__dict__["headers_at_once"] = depth + 1
        try:
            return super().fromtarfile(tar)
        finally:
            tar.__dict__["headers_at_once"] = depth

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # tarfile takes anything that is not a header for the end. Only a block of zeros is.
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            reason = str(error) if buf else "it ends without its end mark"
            raise SourceError(f"it is cut off or damaged: {reason}") from error
        if info.size < 0 or (info.type in _LONG_HEADERS and info.size > LARGEST_HEADER_BYTES):
            raise SourceError(f"it has a header of {info.size} bytes, expected at most {LARGEST_HEADER_BYTES}")
        if info.type == tarfile.GNUTYPE_SPARSE:
            _refuse_sparse()
        return info

    def _proc_gnusparse_00(self, *_: Any) -> None:
        _refuse_sparse()

    def _proc_gnusparse_01(self, *_: Any) -> None:
        _refuse_sparse()

    def _proc_gnusparse_10(self, *_: Any) -> None:
        _refuse_sparse()


def _refuse_sparse() -> None:
    raise SourceError("it has a sparse member, which is not read; pack the shard without")


def _problem(found: tarfile.TarInfo) -> str | None:
    if found.size < 0:
        return f"has a size of {found.size}"
    if not found.isreg():
        return "is not a regular file (a link, a device or a pipe) and was not read"
    parts = PurePosixPath(found.name).parts
    if not parts or found.name.startswith("/") or ".." in parts or "\\" in found.name:
        return "has a name that leads out of the shard and was not read"
    try:
        printable = found.name.encode("utf-8").decode().isprintable()
    except UnicodeEncodeError:
        return "has a name that is not valid UTF-8 and was not read"
    return None if printable else "has a name with control characters and was not read"
