"""Tar shards to index, and an HTTP server of files with the ways that servers have of failing."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from index_support import FakeEncoder, settings

from indexer.build.options import BuildRequest
from indexer.build.progress import BuildReport, Progress
from indexer.build.run import build
from indexer.store.reader import StoreReader
from indexer.store.records import Video
from indexer.store.writer import StoreWriter


def index(store: Path, *paths: Path | str, encoder: FakeEncoder | None = None, **options: object) -> BuildReport:
    """One indexing run."""
    request = BuildRequest(paths=[str(path) for path in paths], **options)
    with StoreWriter.open(store, settings=settings()) as writer:
        return build(writer, encoder or FakeEncoder(), request, Progress())


def videos_of(store: Path) -> dict[str, Video]:
    """Every video by its title."""
    with StoreReader.open(store) as reader:
        return {video.title: video for video in reader.list_videos(state=None, limit=1000)}


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """A header."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def write_shard(path: Path, members: Mapping[str, bytes | str | dict[str, object]]) -> Path:
    """A tar file of regular members: bytes, texts, or objects as JSON."""
    with tarfile.open(path, "w") as tar:
        for name, value in members.items():
            text = json.dumps(value) if isinstance(value, dict) else value
            content = text.encode() if isinstance(text, str) else text
            tar.addfile(member(name, len(content)), io.BytesIO(content))
    return path


@dataclass(kw_only=True)
class Served:
    """What the server does with a path; ``requests`` are the method and the range of each one that came."""

    content: bytes
    etag: str | None = '"1"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    pause_seconds: float = 0.0
    location: str | None = None
    length: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, Served]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.close_connection = True
        served = self.files.get(self.path)
        if served is None:
            self._head(404, {"Content-Length": "0"})
            return
        wanted = self.headers.get("Range")
        served.requests.append((self.command, wanted))
        if served.location is not None:
            self._head(302, {"Location": served.location, "Content-Length": "0"})
            return
        if body and served.status:
            self._head(served.status.pop(0), {"Content-Length": "0"})
            return
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and served.ranges else 0
        content = served.content[start:]
        headers = {"ETag": served.etag} if served.etag else {}
        if served.length:
            headers["Content-Length"] = str(len(content))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(served.content) - 1}/{len(served.content)}"
        self._head(206 if start else 200, headers)
        if body:
            self._send(served, content)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _send(self, served: Served, content: bytes) -> None:
        if served.cut_after:
            content = content[: served.cut_after.pop(0)]
        time.sleep(served.pause_seconds)
        with suppress(OSError):  # the client had enough
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing it waits for its threads, and no socket stays behind
    block_on_close = True

    def handle_error(self, *_: object) -> None:
        pass  # a client that hangs up is no news


@contextmanager
def serving(files: dict[str, Served]) -> Iterator[str]:
    """A server on the loopback, by the beginning of its URLs."""
    handler = type("Handler", (_Handler,), {"files": files})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
