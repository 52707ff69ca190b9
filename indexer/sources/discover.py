"""From the paths on the command line to video files, each known by the SHA-256 of its bytes.

Folders are searched recursively (hidden files and folders are skipped, links to folders are not followed) for the
suffixes of ``model.video.formats``; other files there are counted. A file that is named itself, or matched by a glob,
is indexed whatever its suffix. Whether something really is a video is found out when it is decoded.

A tar shard (``.tar``, named or matched) and a URL are not files to decode but something to read videos from: they are
found here as ``PackedSource`` and read by ``indexer.sources.download_buffer``. Names may hold braces, as in
``shard-{000..099}.tar``.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from indexer.errors import SourceError
from indexer.locations import TAR_SUFFIX, Location, inode_of, leads_out, protocol_of, shard_of
from indexer.sources.url import RemoteFiles
from model.durable import sha256_of_file
from model.video.formats import SUFFIXES

MOST_BRACED = 1_000_000
"""Names that one pattern with braces may stand for."""

_MAGIC = frozenset("*?[")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file to index. ``root`` is the folder that was named, or the file's own folder."""

    path: Path
    root: Path


@dataclass(frozen=True, kw_only=True)
class PackedSource:
    """A tar shard, or a video that is not a local file: ``name`` is a path or a URL, ``key`` equal on all machines."""

    name: str
    key: str

    @property
    def is_url(self) -> bool:
        """Whether it is read through fsspec."""
        return protocol_of(self.name) is not None

    @property
    def is_shard(self) -> bool:
        """Whether it holds videos, and is none."""
        return self.name.partition("?")[0].lower().endswith(TAR_SUFFIX) if self.is_url else True


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What the given paths led to.

    Files in order of path, the folders searched, shards and URLs in order of name, and places that could not be read.
    ``passed_over`` counts other files of the folders by suffix, but for those with the stem of a video beside them,
    which may belong to it (captions, subtitles).
    """

    files: list[FoundFile]
    folders: list[Path]
    packed: list[PackedSource]
    unreadable: list[tuple[str, str]]
    passed_over: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """A file with its content's hash, or with the reason why it could not be read."""

    found: FoundFile
    location: Location | None
    reason: str | None


def discover(
    paths: Iterable[str],
    *,
    exclude: Path | None = None,
    remote: RemoteFiles | None = None,
    within: Collection[Path] = (),
) -> Discovery:
    """Find the videos behind ``paths``: folders, files, globs such as ``'clips/**/*.mp4'``, tar shards, URLs.

    ``exclude`` (the store itself) is not searched; URLs are asked for through ``remote``. With ``within``, files that
    links lead out of these folders cannot be read. Raises ``SourceError`` for a
    path that does not exist, a glob that matches nothing, and a URL that may not be fetched.
    """
    files: dict[Path, FoundFile] = {}
    folders: list[Path] = []
    packed: dict[str, PackedSource] = {}
    unreadable: list[tuple[str, str]] = []
    passed_over: Counter[str] = Counter()
    skipped = None if exclude is None else _absolute(exclude)
    for path in _expand(paths):
        if isinstance(path, str):
            try:
                found = _remote(remote, path).find(path)
            except SourceError as error:
                _remote(remote, path).check(path)  # what may not be fetched ends the run; what cannot be, does not
                unreadable.append((path, str(error)))
                continue
            packed |= {url: PackedSource(name=url, key=url) for url in found if url == path or _is_source(url)}
        elif path.is_dir():
            folders.append(path)
            for file in _walk(path, skipped, unreadable, passed_over):
                files.setdefault(file, FoundFile(path=file, root=path))
        elif path.suffix.lower() == TAR_SUFFIX:
            packed[str(path)] = PackedSource(name=str(path), key=path.name)
        else:
            files.setdefault(path, FoundFile(path=path, root=path.parent))
    for path in [path for path in files if leads_out(path, within)]:
        del files[path]
        unreadable.append((str(path), "a link leads out of the folders that may be read"))
    for name in [name for name in packed if protocol_of(name) is None and leads_out(Path(name), within)]:
        del packed[name]
        unreadable.append((name, "a link leads out of the folders that may be read"))
    for name in [name for name in packed if not _is_utf8(name)]:  # which the catalogue cannot hold
        del packed[name]
        unreadable.append((name, "the name is not valid UTF-8; rename it"))
    return Discovery(
        files=[files[path] for path in sorted(files)],
        folders=folders,
        packed=[packed[name] for name in sorted(packed)],
        unreadable=unreadable,
        passed_over=passed_over,
    )


def count_videos(paths: Iterable[str]) -> int:
    """Count the local videos that ``paths`` lead to; shards and URLs are not opened."""
    return len(discover(path for path in paths if protocol_of(path) is None).files)


def check_paths(paths: Iterable[str], allowed: Iterable[str] = ()) -> None:
    """Raise ``SourceError`` for a path that does not exist, a glob that matches nothing, a URL of no allowed protocol.

    Reads no folder and fetches nothing.
    """
    with RemoteFiles(allowed, timeout_seconds=1) as remote:
        for path in _expand(paths):
            if isinstance(path, str):
                remote.check(path)


def braced(text: str) -> Iterator[str]:
    """``a-{00..02}.tar`` → ``a-00.tar`` …, ``{x,y}.tar`` → ``x.tar``, ``y.tar``; a text without braces is itself.

    Raises ``SourceError`` for a pattern that stands for too many names.
    """
    parts = _BRACES.split(text)
    choices: list[Sequence[str] | Iterator[str]] = []
    count = 1
    for number, part in enumerate(parts):
        options = [part] if number % 2 == 0 else _options(part)
        count *= len(options)
        if count > MOST_BRACED:
            raise SourceError(f"{text!r} stands for more than {MOST_BRACED} names; give fewer at once")
        choices.append(options)
    return ("".join(names) for names in itertools.product(*choices))


def hash_files(files: Sequence[FoundFile], known: Mapping[str, Location], *, threads: int) -> Iterator[Hashed]:
    """Hash files in parallel, in the order given.

    A file whose path, size, time of change and inode are in ``known`` is not read again; nor is one of which ``known``
    has no inode: it is recorded then.
    """

    def work(found: FoundFile) -> Hashed:
        try:
            return Hashed(found=found, location=_locate(found.path, known), reason=None)
        except (OSError, SourceError) as error:
            return Hashed(found=found, location=None, reason=_reason(error))

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, files)


def missing(known: Iterable[Location], discovery: Discovery, *, exclude: Path | None = None) -> list[Location]:
    """Known places under the folders searched where there is no file any more.

    ``exclude`` (the store itself) was not searched: its own files are not among them.
    """
    skipped = None if exclude is None else _absolute(exclude)
    return [
        location
        for location in known
        if any(Path(location.path).is_relative_to(folder) for folder in discovery.folders)
        and not (skipped is not None and Path(location.path).is_relative_to(skipped))
        and not os.path.lexists(location.path)
        and not os.path.lexists(shard_of(location.path) or location.path)
    ]


def _expand(paths: Iterable[str]) -> Iterator[Path | str]:
    """Absolute paths of what exists, and URLs as they are."""
    for text in paths:
        if protocol_of(text) is not None:
            yield from braced(text)
        elif Path(text).exists():
            yield _absolute(Path(text))
        else:
            for name in braced(text):
                yield from map(_absolute, _existing(name))


def _existing(text: str) -> list[Path]:
    if Path(text).exists():
        return [Path(text)]
    if not _MAGIC.intersection(text):
        raise SourceError(f"there is no file or folder {text!r}; give folders, video files or globs in quotes")
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - absolute globs
    if not matches:
        raise SourceError(f"no file or folder matches {text!r}")
    return matches


def _options(part: str) -> list[str]:
    """What stands between braces: a range of numbers with leading zeros, or a list."""
    if match := _RANGE.fullmatch(part):
        first, last = (int(number) for number in match.groups())
        width = len(match[1]) if match[1].startswith("0") else 0
        if abs(last - first) >= MOST_BRACED:
            raise SourceError(f"{{{part}}} stands for more than {MOST_BRACED} names; give fewer at once")
        step = 1 if last >= first else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    return part.split(",") if "," in part else [f"{{{part}}}"]


def _remote(remote: RemoteFiles | None, url: str) -> RemoteFiles:
    if remote is None:
        raise SourceError(f"{url!r} is a URL, and nothing is fetched here")
    return remote


def _is_source(url: str) -> bool:
    suffix = Path(url.partition("?")[0]).suffix.lower()
    return suffix in SUFFIXES or suffix == TAR_SUFFIX


def _walk(
    folder: Path, skipped: Path | None, unreadable: list[tuple[str, str]], passed_over: Counter[str]
) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        unreadable.append((str(error.filename), _reason(error)))

    for name, folders, files in os.walk(folder, onerror=failed):
        here = Path(name)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and here / f != skipped)
        shown = [Path(file) for file in files if not file.startswith(".")]
        videos = [file for file in shown if _suffix(file) in SUFFIXES]
        yield from (here / file for file in videos)
        stems = {file.stem for file in videos}
        others = [_suffix(file) for file in shown if _suffix(file) not in SUFFIXES and file.stem not in stems]
        passed_over.update(others)


def _suffix(file: Path) -> str:
    """In lower case, without blanks that copying between systems leaves behind it."""
    return file.suffix.rstrip().lower()


def _locate(path: Path, known: Mapping[str, Location]) -> Location:
    name = str(path)
    if not _is_utf8(name):
        raise SourceError("the file name is not valid UTF-8; rename the file")
    before = path.stat()
    seen = known.get(name)
    if seen is not None and seen.is_still(before):
        return replace(seen, inode=inode_of(before))
    digest = sha256_of_file(path)
    location = Location(
        path=name,
        video_id=digest,
        size_bytes=before.st_size,
        modified_ns=before.st_mtime_ns,
        inode=inode_of(before),
    )
    if not location.is_still(path.stat()):
        raise SourceError("the file changed while it was read; run again when it is complete")
    return location


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _absolute(path: Path) -> Path:
    """Absolute without resolving links, so that a path stays the one that its owner knows."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps '..'


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
