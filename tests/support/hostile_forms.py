"""Requests that are no proper uploads: names that would be paths, parts that are doubled or endless, false lengths.

``forms`` are whole requests as bytes, for a socket, with the statuses that are right answers.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BOUNDARY = "the-boundary"
_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
ACCEPTED = frozenset({200, 202})
NO_VIDEO = frozenset({415, 202})  # 202: what it holds is found out later
REFUSED = frozenset({400, 413, 415, 422})
LATE = frozenset({408})


@dataclass(frozen=True, kw_only=True)
class Form:
    """One request to ``path``: what is sent, and the statuses that may come."""

    name: str
    head: str
    body: bytes
    right: frozenset[int]

    def request(self, path: str, port: int) -> bytes:
        """All its bytes."""
        return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{self.head}\r\n".encode("latin-1") + self.body


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="x.mp4"', more: str = "") -> bytes:
    """One part of a form, its boundary before it."""
    return f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n{more}\r\n".encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def _form(name: str, body: bytes, right: frozenset[int], *, kind: str = _TYPE, length: int | None = None) -> Form:
    declared = len(body) if length is None else length
    return Form(
        name=name,
        head=f"Content-Type: {kind}\r\nContent-Length: {declared}\r\n",
        body=body,
        right=right,
    )


_NAMES = {
    "a path": "../../../../etc/passwd",
    "a path of Windows": "..\\\\..\\\\windows\\\\system32",
    "an absolute path": "/etc/cron.d/x",
    "a null byte": "x\0.mp4",
    "control characters": "\x1b[2J\x07\x08.mp4",
    "letters from right to left": "\u202egpm.exe 🎬 \u0000é",
    "three thousand letters": "x" * 3000 + ".mp4",
    "a command": "; touch /tmp/x; $(reboot) `id`.mp4",
    "an address": "http://127.0.0.1:9/x.mp4",
    "a number": "12",
    "nothing": "",
}


def forms(video: bytes) -> Iterator[Form]:
    """All of them, around one good video."""
    good = part(video)
    for name, value in _NAMES.items():
        yield _form(
            f"name {name}", part(video, f'form-data; name="file"; filename="{value}"') + END, ACCEPTED | REFUSED
        )
    yield _form("no filename", part(video, 'form-data; name="file"') + END, ACCEPTED)
    yield _form(
        "a filename in two ways",
        part(video, 'form-data; name="file"; filename="a"; filename*=UTF-8\'\'%2e%2e%2fb') + END,
        ACCEPTED,
    )
    yield _form("no name", part(video, "form-data") + END, REFUSED)
    yield _form("no quotes", part(video, "form-data; name=file") + END, ACCEPTED | REFUSED)
    yield _form("the name twice", part(video, 'form-data; name="x"; name="file"') + END, ACCEPTED | REFUSED)
    yield _form("no disposition", f"--{BOUNDARY}\r\n\r\n".encode() + video + b"\r\n" + END, REFUSED)
    yield _form("the part twice", good + good + END, REFUSED)
    yield _form("no part", END, REFUSED)
    yield _form("a thousand parts", part(b"", 'form-data; name="x"') * 1000 + good + END, ACCEPTED | REFUSED)
    yield _form("parts without end, all empty", part(b"", "form-data") * 5000 + good + END, frozenset({413}))
    yield _form("a thousand files", part(b"x") * 1000 + END, REFUSED)
    yield _form("headers of a part without end", part(video, more="X: " + "y" * 200_000 + "\r\n") + END, REFUSED)
    yield _form("a thousand headers of a part", part(video, more="X: y\r\n" * 1000) + END, ACCEPTED | REFUSED)
    yield _form("type text", part(video, more="Content-Type: text/html\r\n") + END, ACCEPTED)
    yield _form("said to be gzip", part(video, more="Content-Encoding: gzip\r\n") + END, ACCEPTED | REFUSED)
    yield _form("in base64", part(b"AAAA", more="Content-Transfer-Encoding: base64\r\n") + END, NO_VIDEO)
    yield _form("no end", good, REFUSED)
    yield _form("something behind the end", good + END + b"x" * 1000, ACCEPTED | REFUSED)
    yield _form("something before the beginning", b"preamble\r\n" + good + END, ACCEPTED | REFUSED)
    yield _form("only line feeds", (good + END).replace(b"\r\n", b"\n"), REFUSED)
    yield _form("another boundary", good + END, REFUSED, kind="multipart/form-data; boundary=other")
    yield _form("no boundary", good + END, REFUSED, kind="multipart/form-data")
    yield _form("an empty boundary", good + END, REFUSED, kind='multipart/form-data; boundary=""')
    yield _form("a long boundary", good + END, REFUSED, kind="multipart/form-data; boundary=" + "b" * 5000)
    yield _form(
        "a boundary of letters that are none", good + END, REFUSED, kind="multipart/form-data; boundary=\xe9\xff"
    )
    yield _form("a form in a form", part(good + END, more=f"Content-Type: {_TYPE}\r\n") + END, NO_VIDEO)
    yield _form("not a form", video, REFUSED, kind="video/mp4")
    yield _form("json", b'{"file": "/etc/passwd"}', REFUSED, kind="application/json")
    yield _form("url-encoded", b"file=/etc/passwd", REFUSED, kind="application/x-www-form-urlencoded")
    yield _form("mixed", good + END, REFUSED, kind=_TYPE.replace("form-data", "mixed"))
    yield _form("a length that is too small", good + END, REFUSED, length=len(good) // 2)
    yield _form("a length that is too large", good + END, LATE | REFUSED | ACCEPTED, length=len(good) + 5000)
    yield _form("a length beyond the limit", good + END, REFUSED, length=2**40)
    yield _form("a negative length", good + END, REFUSED, length=-1)
    yield Form(
        name="two lengths",
        head=f"Content-Type: {_TYPE}\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        body=good + END,
        right=REFUSED,
    )
    chunked = f"Content-Type: {_TYPE}\r\nTransfer-Encoding: chunked\r\n"
    whole = f"{len(good + END):x}\r\n".encode() + good + END + b"\r\n"
    end = b"0\r\n\r\n"
    yield Form(name="in chunks", head=chunked, body=whole + end, right=ACCEPTED)
    yield Form(name="chunks without end", head=chunked, body=whole, right=LATE)
    yield Form(name="a chunk of wrong size", head=chunked, body=b"zz\r\n" + good, right=REFUSED)
    yield Form(name="a chunk beyond all bounds", head=chunked, body=b"f" * 17 + b"\r\n" + good, right=REFUSED | LATE)
    both = chunked + "Content-Length: 5\r\n"
    yield Form(name="chunks and a length", head=both, body=whole + end, right=ACCEPTED | REFUSED)
    yield Form(name="a head without end", head="X: " + "y" * 100_000, body=b"", right=frozenset({400, 431}))
    promised = f"Content-Type: {_TYPE}\r\nContent-Length: 100000\r\n"
    yield Form(name="a part that never comes", head=promised, body=good[:100], right=LATE)
    yield Form(name="nothing after the head", head=promised, body=b"", right=LATE)


_OPENED, _READ = 0x20, 0x1
_NONBLOCK = os.O_NONBLOCK


class Watch:
    """Notices when a file in a folder is opened or read (Linux' inotify)."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(_NONBLOCK)
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _OPENED | _READ) < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot watch the bait")

    def seen(self) -> list[str]:
        """The names of the files that were opened or read since the last call."""
        names = []
        while True:
            try:
                events = os.read(self._descriptor, 65536)
            except BlockingIOError:
                return names
            while events:
                *_, length = struct.unpack_from("iIII", events)
                names.append(events[16 : 16 + length].rstrip(b"\0").decode())
                events = events[16 + length :]

    def close(self) -> None:
        """Stop watching."""
        os.close(self._descriptor)


class Listener:
    """A port that notices who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.calls: list[bytes] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.calls.append(connection.recv(1000))

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@contextmanager
def laid_out(folder: Path, video: bytes) -> Iterator[tuple[Watch, Listener]]:
    """The bait in ``folder``: ``secret.mp4``, a good video, watched from now on, and a port."""
    (folder / "secret.mp4").write_bytes(video)
    watch, listener = Watch(folder), Listener()
    try:
        yield watch, listener
    finally:
        watch.close()
        listener.close()
