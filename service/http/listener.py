"""The listening socket, bound before anything is loaded, so that a port in use is reported at once."""

from __future__ import annotations

import errno
import re
import socket
from pathlib import Path


class AddressError(ValueError):
    """The address cannot be listened on; the message says why and what to do."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port`` (0: a free one), not yet listening: clients are refused until it does.

    Raises ``AddressError`` for an address that is in use, needs rights, or is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise AddressError(
            f"--host {host} cannot be resolved ({error.strerror}); use an address of this machine, such as 127.0.0.1"
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise AddressError(_reason(error, host, port)) from error
    return listener


def bind_shared(host: str, port: int, count: int) -> list[socket.socket]:
    """``count`` sockets of one address, among which the kernel distributes connections; otherwise as ``bind``.

    Other programs of the same user could join them. So the port is first checked to be free.
    """
    with bind(host, port) as probe:
        address, family = probe.getsockname(), probe.family
    listeners: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise AddressError(_reason(error, host, address[1])) from error
    return listeners


def bind_private(path: Path) -> socket.socket:
    """A Unix socket at ``path``, in place of one that a process that died has left there."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    return listener


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        by = "" if holder is None else f" by {holder}"
        return f"port {port} of {host} is in use{by}; stop that program, or take another port (--port 0: a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} needs the rights of an administrator; take one from 1024 on, such as --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine; use 127.0.0.1, or one that `ip address` shows"
    return f"cannot listen on {host}, port {port}: {error.strerror}"


def holder_of(port: int, proc: Path = Path("/proc")) -> str | None:
    """The process that listens on a TCP port, as ``process 123 (python3)``; None if the system does not say."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: listening
                inodes.add(f"socket:[{fields[9]}]")
    for process in proc.iterdir() if inodes else ():
        if not re.fullmatch(r"\d+", process.name):
            continue
        try:
            if any(str(descriptor.readlink()) in inodes for descriptor in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text(encoding='utf-8').strip()})"
        except OSError:  # another user's process, or one that has ended
            continue
    return None
