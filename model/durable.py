"""Files that are either wholly there or not there, also after a power cut. Imports nothing of the project,
and NumPy only where arrays are read or written, because commands that only show their help import this too.

The pattern everywhere: write under a temporary name, ``fsync`` the file, rename it, ``fsync`` the folder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import BadZipFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEMPORARY_PREFIX = ".tmp-"
_BLOCK_BYTES = 1 << 20


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Force a folder's entries (names, renames, removals) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace ``path`` by ``content``: a reader sees the old or the new file, never a part of one.

    ``mode`` are the file's permissions, in force before the first byte is written; default: those of any new file.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    with temporary.open("wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, also behind a link, for reading. Raises ``OSError`` for a pipe, a socket or a device.

    Opening one of those can block forever, and checking first leaves time to put one there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file (a pipe, a socket, a device or a folder)", str(path))
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a regular file's bytes as 64 hex digits, read in blocks."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def digest_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and contents."""
    import numpy as np

    hashed = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        hashed.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays with their digest to one file, wholly or not at all."""
    import numpy as np

    content = io.BytesIO()
    np.savez(content, digest=np.array(digest_of_arrays(arrays)), **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def load_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Read what ``save_arrays`` wrote; None without a file. Raises ``ValueError`` for what is not what was written."""
    import numpy as np

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = dict(file)
        if str(arrays.pop("digest")) != digest_of_arrays(arrays):
            raise ValueError("its content does not match its checksum")
        return arrays
    except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
