"""Reads remote files by URL through fsspec, over explicitly allowed protocols only.

Nothing is fetched over a protocol that was not allowed with ``--allow-protocol``; a redirect to another protocol is
refused. The service does not use this module: its clients cannot name URLs as paths.

A failed read is retried a few times from the byte it reached, unless the error is permanent (``is_lasting``). A
response that is shorter than its length or slower than ``SLOWEST_BYTES_PER_SECOND`` is an error.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from indexer.errors import SourceError
from indexer.locations import protocol_of

_LASTING_STATUS = range(400, 500)

_WORTH_TRYING_STATUS = (408, 425, 429)


def is_lasting(error: BaseException) -> bool:
    """Whether the error is permanent, so that a retry cannot help."""
    status = _status(error)
    if status is not None:
        return status in _LASTING_STATUS and status not in _WORTH_TRYING_STATUS
    if isinstance(error.__cause__, SourceError):
        return True
    return isinstance(error, SourceError | PermissionError | NotImplementedError) or (
        isinstance(error, FileNotFoundError) and error.__cause__ is None
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error; fsspec calls every failure of a question "not found"."""
    found = getattr(error, "status", None)
    if found is None and error.__cause__ is not None:
        return _status(error.__cause__)
    return found if isinstance(found, int) else None


def reason_of(error: BaseException) -> str:
    """The reason for an error, in words."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None:
        return reason_of(cause)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    if status is not None and message is not None:
        return f"the server answered {status} {message}"
    return str(error) or type(error).__name__


T = TypeVar("T")

UNKNOWN = -1
"""A size or a version that the file system does not report."""

TRIES = 4

FIRST_PAUSE_SECONDS = 0.5

SLOWEST_BYTES_PER_SECOND = 1024

CONNECT_TIMEOUT_SECONDS = 30.0

FETCH_TIMEOUT_SECONDS = 60.0
"""Timeout without any data before a retry."""

_SAME = {"s3a": "s3", "gcs": "gs", "local": "file", "ssh": "sftp", "abfss": "abfs", "az": "abfs"}

_EXTRAS = {"s3": "s3", "gs": "gs", "http": "http", "https": "http"}

_HTTP = ("http", "https")

_AUTHORITY = re.compile("[^/?#]*")

# In the words of fsspec's file systems for HTTP, S3, Google Cloud Storage, local files and memory.
_VERSION_KEYS = (
    *("ETag", "etag", "Last-Modified", "LastModified", "last_modified"),
    *("generation", "updated", "mtime", "created"),
)

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RemoteInfo:
    """What a file system reports before anything is read; each ``UNKNOWN`` where it does not."""

    size_bytes: int
    version: int


def check_url(url: str, allowed: Iterable[str]) -> None:
    """Raise ``SourceError`` unless ``url`` may be fetched, whatever its protocol is called. Fetches nothing."""
    allowed = sorted(allowed)
    protocol = protocol_of(url)
    if _has_credentials(url):  # first, as the others repeat the URL
        raise SourceError(
            f"{url.split('@')[-1]!r} was given with a name or password, which the store would keep; give it without"
        )
    if "::" in url:
        raise SourceError(f"{url!r} chains file systems; give a plain URL")
    if protocol is None or _system_of(protocol) not in map(_system_of, allowed):
        named = ", ".join(allowed) if allowed else "none"
        raise SourceError(
            f"{url!r} is not fetched: protocols allowed are {named}; add --allow-protocol {protocol} if it may be"
        )


def _has_credentials(url: str) -> bool:
    authority = _AUTHORITY.match(url.partition("://")[2])
    assert authority is not None, url
    user, separator, _ = authority[0].rpartition("@")
    is_container = ":" not in user and _system_of(protocol_of(url) or "") == "abfs"  # abfs://CONTAINER@ACCOUNT
    return bool(separator) and not is_container


def _system_of(protocol: str) -> str:
    """One name for all that a file system goes by. HTTP and HTTPS are two: they are allowed one by one."""
    return _SAME.get(protocol, protocol)


class RemoteFiles:
    """Files behind URLs of the allowed protocols. Thread-safe. Use as a context manager: leaving it ends connections.

    ``timeout_seconds`` is the timeout without any data.
    """

    def __init__(self, allowed: Iterable[str], timeout_seconds: float) -> None:
        self._allowed = frozenset(allowed)
        self._timeout_seconds = timeout_seconds
        self._systems: dict[str, Any] = {}

    def __enter__(self) -> RemoteFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for system in self._systems.values():
            session = getattr(system, "_session", None)
            if session is not None and hasattr(system, "close_session"):
                system.close_session(system.loop, session)
        self._systems = {}

    def check(self, url: str) -> None:
        """Raise ``SourceError`` unless ``url`` may be fetched and the package for it is there. Fetches nothing."""
        check_url(url, self._allowed)
        self._system(url)

    def find(self, url: str) -> list[str]:
        """The URLs behind one: itself, or what a folder or a pattern holds where the protocol has such a thing.

        Raises ``SourceError``.
        """
        self.check(url)
        if protocol_of(url) in _HTTP:  # has no folders, and a question mark is not a pattern
            return [url]
        system = self._system(url)
        try:
            if any(character in url for character in "*?["):
                names = self._tried(url, lambda: system.glob(url))
            elif url.endswith("/") or self._tried(url, lambda: system.isdir(url)):
                names = self._tried(url, lambda: system.find(url))
            else:
                return [url]
        except _LastTry as error:
            raise SourceError(f"{url!r} cannot be listed: {error}") from error
        return [str(system.unstrip_protocol(name)) for name in sorted(names)]

    def info(self, url: str) -> RemoteInfo:
        """Size and version. Raises ``SourceError``."""
        self.check(url)
        try:
            found = self._tried(url, lambda: self._system(url).info(url))
        except _LastTry as error:
            raise SourceError(str(error)) from error
        size = found.get("size")
        version = next((str(found[key]) for key in _VERSION_KEYS if found.get(key)), None)
        return RemoteInfo(
            size_bytes=UNKNOWN if size is None else int(size),
            version=UNKNOWN if version is None else version_number(version),
        )

    def open(self, url: str, size_bytes: int) -> IO[bytes]:
        """A stream of a file's bytes from the first to the last. Reading raises ``SourceError``."""
        self.check(url)
        return io.BufferedReader(_Stream(self, url, size_bytes), _BLOCK_BYTES)

    def open_at(self, url: str, offset: int) -> Any:
        """The file system's own file, at ``offset``."""
        system = self._system(url)
        http = protocol_of(url) in _HTTP
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        # Block size 0: one answer read as it comes. A size keeps fsspec from asking for it once more.
        options = {"block_size": 0, "size": 1, "headers": headers} if http else {}
        file = system.open(url, "rb", **options)
        try:
            if not http:
                file.seek(offset)
            elif file.r.status != 206:  # a server without ranges begins anew
                _skip(file, offset)
        except BaseException:
            file.close()
            raise
        return file

    def _tried(self, url: str, work: Callable[[], T]) -> T:
        for number in _tries():
            try:
                return work()
            except Exception as error:  # every file system has exceptions of its own
                if number == TRIES or is_lasting(error):
                    raise _LastTry(reason_of(error)) from error
        raise AssertionError(url)

    def _system(self, url: str) -> Any:
        import fsspec  # type: ignore[import-untyped]

        protocol = _system_of(protocol_of(url) or "")
        assert protocol, url
        if protocol not in self._systems:
            try:
                options = self._options(protocol)
                kind = fsspec.get_filesystem_class(protocol)
                inspect.signature(kind.__init__).bind(
                    None, **options
                )  # a half-made file system complains when it is deleted
                self._systems[protocol] = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
            except ImportError as error:
                extra = _EXTRAS.get(protocol)
                wanted = f"the extra `{extra}`: pip install 'emcl-search[{extra}]'" if extra else "a package for it"
                raise SourceError(f"{protocol}:// needs {wanted} ({error})") from error
            except ValueError as error:
                raise SourceError(f"{url!r}: {error}") from error
            except Exception as error:  # such as a TypeError for a missing argument that no URL contains
                raise SourceError(
                    f"{protocol}:// cannot be read by a URL alone ({error}); copy its files here and give their paths"
                ) from error
        return self._systems[protocol]

    def _options(self, protocol: str) -> dict[str, Any]:
        if protocol == "s3":
            seconds = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "read_timeout": self._timeout_seconds}
            return {"config_kwargs": seconds}
        if protocol in _HTTP:
            # aiohttp's own check of the status lets the connection go; that of fsspec leaves it open.
            session = {"timeout": self._http_timeout(), "trace_configs": [self._redirections()]}
            return {"client_kwargs": {**session, "raise_for_status": True}}
        return {}

    def _http_timeout(self) -> Any:
        import aiohttp

        return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=self._timeout_seconds)

    def _redirections(self) -> Any:
        import aiohttp
        from yarl import URL

        async def check(_session: Any, _context: Any, parameters: Any) -> None:
            headers = parameters.response.headers
            target = headers.get("Location") or headers.get("URI") or ""  # read as aiohttp does, which follows either
            try:
                protocol = URL(target).scheme
            except ValueError as error:
                raise SourceError(f"it redirects to something that is not a URL: {error}") from error
            if protocol and protocol not in self._allowed:
                raise SourceError(f"it redirects to {protocol}://, which is not allowed")

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(check)
        return trace


class _Stream(io.RawIOBase):
    """Resumes where it was when reading fails."""

    def __init__(self, files: RemoteFiles, url: str, size_bytes: int) -> None:
        self._files = files
        self._url = url
        self._size_bytes = size_bytes
        self._position = 0
        self._file: Any = None
        self._seconds = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for number in _tries():
            try:
                return self._read(buffer)
            except Exception as error:  # every file system has exceptions of its own
                self._drop()
                if isinstance(error, SourceError):
                    raise
                if number == TRIES or is_lasting(error):
                    raise SourceError(f"reading stopped at byte {self._position}: {reason_of(error)}") from error
        raise AssertionError(self._url)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, buffer: Any) -> int:
        before = time.monotonic()
        try:
            if self._file is None:
                self._file = self._files.open_at(self._url, self._position)
            block = self._file.read(len(buffer))
        finally:
            self._seconds += time.monotonic() - before  # not what passes between two reads, when we are the slow ones
        if not block and self._position < self._size_bytes:
            raise OSError(f"the answer ended, {self._size_bytes} bytes were announced")
        buffer[: len(block)] = block
        self._position += len(block)
        self._check_speed()
        return len(block)

    def _check_speed(self) -> None:
        if self._seconds > self._files._timeout_seconds and self._position < SLOWEST_BYTES_PER_SECOND * self._seconds:
            raise SourceError(f"only {self._position} bytes came in {self._seconds:.0f} s")

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _skip(file: Any, size_bytes: int) -> None:
    while size_bytes > 0:
        block = file.read(min(size_bytes, _BLOCK_BYTES))
        if not block:
            raise OSError("the answer is shorter than it was")
        size_bytes -= len(block)


class _LastTry(Exception):  # noqa: N818 - what it is
    """The last try failed; the text says how."""


def version_number(text: str) -> int:
    """A number of 63 bits for an ETag or a time of change."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _tries() -> Iterator[int]:
    for number in range(1, TRIES + 1):
        yield number
        if number < TRIES:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (number - 1))
