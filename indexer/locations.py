"""Where a video is: in a file, behind a URL, or as a member of a tar shard (``SHARD!MEMBER``)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TAR_SUFFIX = ".tar"
SEPARATOR = "!"

_PROTOCOL = "[a-z0-9+-]+://"
_TAR = re.escape(TAR_SUFFIX)
# A query ends at the next separator, and only URLs have one: in a path a question mark is part of a name.
_MEMBER = re.compile(
    rf"({_PROTOCOL}[^?]+?{_TAR}(?:\?[^{SEPARATOR}]*)?|(?!{_PROTOCOL}).+?{_TAR}){SEPARATOR}",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A place where a video's bytes were found, with what ``stat`` said then.

    ``path`` is a file, a URL, or ``SHARD!MEMBER`` for a member of a tar file. For URLs and members ``modified_ns`` is a
    version: a number that changes with the content, or -1 if the source reports none. ``inode`` is None for
    anything but a file, and for files that earlier programs recorded. ``file`` is a local copy that is readable during
    this run; it is not recorded.
    """

    path: str
    video_id: str
    size_bytes: int
    modified_ns: int
    inode: int | None = None
    file: str | None = field(default=None, compare=False)

    def is_still(self, status: os.stat_result) -> bool:
        """Whether a file has the size, the time of change and, where it is known, the inode that were recorded."""
        same = (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.modified_ns)
        return same and self.inode in (None, inode_of(status))


def inode_of(status: os.stat_result) -> int:
    """The inode, without the highest of its 64 bits, which SQLite's integers cannot hold."""
    return status.st_ino & (1 << 63) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRow:
    """A tar shard or a URL that was read, to its end if ``complete``; ``reason`` says what could not be used of it.

    ``size_bytes`` is -1 where the file system does not report it; ``version`` is as in ``Location.modified_ns``.
    """

    name: str
    size_bytes: int
    version: int
    complete: bool
    reason: str | None


def protocol_of(text: str) -> str | None:
    """The protocol of a URL; None for a path."""
    protocol, separator, _ = text.partition("://")
    return protocol.lower() if separator and protocol.replace("+", "").replace("-", "").isalnum() else None


def member_path(shard: str, member: str) -> str:
    """The name of a member in a store: ``SHARD!MEMBER``."""
    return f"{shard}{SEPARATOR}{member}"


def shard_of(path: str) -> str | None:
    """The shard of ``SHARD!MEMBER``; None for a path that is not a member."""
    found = _MEMBER.match(path)
    return None if found is None else found[1]


def possible_sources(path: str) -> Iterator[str]:
    """The sources a place may belong to: itself, and each prefix that ends before a ``!``, as names may contain one."""
    yield path
    for found in re.finditer(SEPARATOR, path):
        yield path[: found.start()]


def leads_out(path: Path, within: Collection[Path]) -> bool:
    """Whether a path, with all links followed, is in none of the folders; without folders, everything may be read."""
    if not within:
        return False
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError):  # not there, or a loop of links: there is nothing to read
        return True
    return not any(found.is_relative_to(folder.resolve()) for folder in within)
