"""One process at a time may write a store; the others get an error that names it."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import filelock

from indexer.errors import StoreLocked

LOCK, LOCK_HOLDER = "writer.lock", "writer.json"


def acquire_lock(path: Path) -> filelock.BaseFileLock:
    """Become the one writer of the store in ``path``. Raises ``StoreLocked`` that says who it is instead."""
    lock = filelock.FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise StoreLocked(
            f"{path} is being written by {_holder(path)}; wait until it has ended. Searching goes on meanwhile"
        ) from error
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (path / LOCK_HOLDER).write_text(json.dumps(holder), encoding="utf-8")
    return lock


def _holder(path: Path) -> str:
    try:
        holder = json.loads((path / LOCK_HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # the holder has just begun or just ended
        return "another process"
