"""Bait for decoders that can be made to read or to call: a folder in which no file may be opened, and an address that
nobody may ask. Both notice it when somebody does.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
