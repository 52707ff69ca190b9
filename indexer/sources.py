"""From the paths on the command line to video files, each known by the SHA-256 of its bytes.

Folders are searched recursively (hidden files and folders are skipped, links to folders are not followed) for the
suffixes of ``VIDEO_SUFFIXES``; a file that is named itself, or matched by a glob, is taken whatever its suffix. Whether
something really is a video is found out when it is decoded.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import SourceError
from indexer.rows import Location
from model.durable import sha256_of_file

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "mxf", "ogv", "vob", "webm", "wmv", "y4m"),
    )
)
"""Suffixes that mean a video. Not ``.ts`` (mostly TypeScript) nor ``.gif`` (mostly pictures): name such files."""

_MAGIC = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file to index. ``root`` is the folder that was named, or the file's own folder."""

    path: Path
    root: Path


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What the given paths led to: files in order of path, the folders searched, and places that could not be read."""

    files: list[FoundFile]
    folders: list[Path]
    unreadable: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """A file with its content's hash, or with the reason why it could not be read."""

    found: FoundFile
    location: Location | None
    reason: str | None


def discover(paths: Iterable[str], *, exclude: Path | None = None) -> Discovery:
    """Find the video files behind ``paths``: folders, files, or globs such as ``'clips/**/*.mp4'``.

    ``exclude`` (the store itself) is not searched. Raises ``SourceError`` for a path that does not exist and a glob
    that matches nothing.
    """
    files: dict[Path, FoundFile] = {}
    folders: list[Path] = []
    unreadable: list[tuple[str, str]] = []
    skipped = None if exclude is None else _absolute(exclude)
    for path in _expand(paths):
        if path.is_dir():
            folders.append(path)
            for file in _walk(path, skipped, unreadable):
                files.setdefault(file, FoundFile(path=file, root=path))
        else:
            files.setdefault(path, FoundFile(path=path, root=path.parent))
    ordered = [files[path] for path in sorted(files)]
    return Discovery(files=ordered, folders=folders, unreadable=unreadable)


def check_paths(paths: Iterable[str]) -> None:
    """Raise ``SourceError`` for a path that does not exist and a glob that matches nothing; reads no folder."""
    for _ in _expand(paths):
        pass


def hash_files(files: Sequence[FoundFile], known: Mapping[str, Location], *, threads: int) -> Iterator[Hashed]:
    """Hash files in parallel, in the order given.

    A file whose path, size and modification time are in ``known`` is not read again.
    """

    def work(found: FoundFile) -> Hashed:
        try:
            return Hashed(found=found, location=_locate(found.path, known), reason=None)
        except (OSError, SourceError) as error:
            return Hashed(found=found, location=None, reason=_reason(error))

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, files)


def missing(known: Iterable[Location], discovery: Discovery) -> list[Location]:
    """Known places under the folders searched where there is no file any more."""
    return [
        location
        for location in known
        if any(Path(location.path).is_relative_to(folder) for folder in discovery.folders)
        and not os.path.lexists(location.path)
    ]


def _expand(paths: Iterable[str]) -> Iterator[Path]:
    for text in paths:
        if Path(text).exists():
            yield _absolute(Path(text))
        elif _MAGIC.intersection(text):
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute globs
            if not matches:
                raise SourceError(f"no file or folder matches {text!r}")
            yield from (_absolute(match) for match in matches)
        else:
            raise SourceError(f"there is no file or folder {text!r}; give folders, video files or globs in quotes")


def _walk(folder: Path, skipped: Path | None, unreadable: list[tuple[str, str]]) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        unreadable.append((str(error.filename), _reason(error)))

    for name, folders, files in os.walk(folder, onerror=failed):
        here = Path(name)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and here / f != skipped)
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in VIDEO_SUFFIXES:
                yield here / file


def _locate(path: Path, known: Mapping[str, Location]) -> Location:
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError("the file name is not valid UTF-8; rename the file") from error
    before = path.stat()
    seen = known.get(name)
    if seen is not None and (seen.size_bytes, seen.modified_ns) == (before.st_size, before.st_mtime_ns):
        return seen
    digest = sha256_of_file(path)
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise SourceError("the file changed while it was read; run again when it is complete")
    return Location(path=name, video_id=digest, size_bytes=after.st_size, modified_ns=after.st_mtime_ns)


def _absolute(path: Path) -> Path:
    """Absolute without resolving links, so that a path stays the one that its owner knows."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps '..'


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
