"""Append-only shards of feature rows: plain ``.npy`` files that grow and are read through memory maps. ``features/``
has three kinds: ``NNNNNN.npy`` holds frame features (fp16, the rows of a segment stand together), ``pooled-NNNNNN.npy``
one pooled vector per segment and ``captions-NNNNNN.npy`` one text feature per caption (both float32, before the frozen
map). A file is a 128-byte ``.npy`` header and ``rows * dim`` numbers. The catalogue alone decides how many of its rows
count: rows beyond that are left from an interrupted run, and the next writer truncates them.

Legend: N places asked for, F frames, D channels.
"""

from __future__ import annotations

import ast
import mmap
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.errors import Damaged, FeatureError
from model.durable import sync_folder

SHARD_BYTES = 256 << 20
"""A shard is closed before it would grow beyond this: small enough to copy and check, large enough to be few."""

HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"
_HALF_MAX = float(np.finfo(np.float16).max)

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class ShardKind:
    """One of the three families of shards."""

    name: str
    prefix: str
    dtype: np.dtype[np.generic]

    def file_name(self, shard: int) -> str:
        """``000000.npy``, ``pooled-000000.npy``, …"""
        return f"{self.prefix}{shard:06d}.npy"

    def row_bytes(self, dim: int) -> int:
        """Bytes of one row of ``dim`` channels."""
        return dim * self.dtype.itemsize


FRAMES = ShardKind(name="frames", prefix="", dtype=np.dtype("<f2"))
POOLED = ShardKind(name="pooled", prefix="pooled-", dtype=np.dtype("<f4"))
CAPTIONS = ShardKind(name="captions", prefix="captions-", dtype=np.dtype("<f4"))
SHARD_KINDS = (FRAMES, POOLED, CAPTIONS)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where rows were written: ``rows`` rows of shard number ``shard`` from ``row`` on, with their CRC-32."""

    shard: int
    row: int
    rows: int
    crc32: int


def to_half(features: npt.NDArray[np.floating], *, what: str) -> npt.NDArray[np.float16]:
    """Round to fp16. Raises ``FeatureError`` naming ``what`` if a value is NaN or beyond ±65504."""
    largest = float(np.max(np.abs(features), initial=0.0))
    if not largest <= _HALF_MAX:  # also catches NaN, which compares false
        raise FeatureError(
            f"{what}: the largest feature is {largest:g}, half precision holds at most {_HALF_MAX:g}; "
            "the checkpoint produces features that cannot be indexed (load it in fp32, or retrain it)"
        )
    return features.astype(np.float16)


def to_single(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """The same numbers in float32. Through PyTorch: NumPy widens halves one by one, 25 times slower as measured."""
    import torch

    wide: npt.NDArray[np.float32] = torch.from_numpy(features).float().numpy()
    return wide


def header(rows: int, dim: int, dtype: np.dtype[np.generic]) -> bytes:
    """The ``.npy`` version 1.0 header of a ``(rows, dim)`` array, padded to 128 bytes."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": (rows, dim)})
    length = HEADER_BYTES - len(_MAGIC) - 2
    assert len(text) < length, text
    return _MAGIC + length.to_bytes(2, "little") + text.ljust(length - 1).encode("ascii") + b"\n"


def header_rows(path: Path, dim: int, dtype: np.dtype[np.generic]) -> int:
    """Rows that a shard's header names. Raises ``Damaged`` if it is not exactly the header that we write."""
    for _ in range(2):  # a writer may be replacing the header at this very moment
        with path.open("rb") as file:
            found = file.read(HEADER_BYTES)
        try:
            rows = int(ast.literal_eval(found[len(_MAGIC) + 2 :].decode("ascii").strip())["shape"][0])
            if rows >= 0 and found == header(rows, dim, dtype):
                return rows
        except (ValueError, SyntaxError, KeyError, TypeError, IndexError):
            pass  # not a header of ours: reported below together with headers that parse but differ
    raise Damaged(f"{path} does not begin with the header of a (rows, {dim}) {dtype} array; restore it from a copy")


@dataclass(kw_only=True)
class ShardWriter:
    """Appends rows of one kind. Nothing counts before ``sync`` and the catalogue's commit of ``rows``.

    ``rows`` maps shard numbers to committed rows and is brought up to date by ``append``; opening truncates what a
    previous run left beyond it.
    """

    folder: Path
    kind: ShardKind
    dim: int
    rows: dict[int, int]
    max_bytes: int = SHARD_BYTES
    _descriptor: int | None = field(default=None, init=False)
    _current: int = field(default=0, init=False)
    _new_file: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._current = max(self.rows, default=0)
        for path in self.folder.glob(f"{self.kind.prefix}[0-9]*.npy"):
            if int(path.stem.removeprefix(self.kind.prefix)) > self._current or not self.rows:
                path.unlink()
        path = self._path(self._current)
        if path.exists():
            self._cut(path, self.rows[self._current])

    def append(self, rows_ND: Array) -> Place:
        """Write ``(N, dim)`` rows of the kind's dtype behind the last one, all into one shard."""
        assert rows_ND.shape[1:] == (self.dim,), rows_ND.shape
        assert rows_ND.dtype == self.kind.dtype, rows_ND.dtype
        content = np.ascontiguousarray(rows_ND).tobytes()
        row_bytes = self.kind.row_bytes(self.dim)
        start = self.rows.get(self._current, 0)
        if start and HEADER_BYTES + start * row_bytes + len(content) > self.max_bytes:
            self.sync()
            self.close()
            self._current += 1
            start = 0
        descriptor = self._open()
        _write_all(descriptor, content, HEADER_BYTES + start * row_bytes)
        self.rows[self._current] = start + len(rows_ND)
        return Place(shard=self._current, row=start, rows=len(rows_ND), crc32=zlib.crc32(content))

    def begin_new_shard(self) -> int:
        """Close the last shard, so that the next row begins another; returns the number of the first such.

        It is made at once, with no row in it.
        """
        self.sync()
        self.close()
        self._current = max(self.rows, default=-1) + 1
        self._open()
        self.sync()
        return self._current

    def go_back_to(self, rows: dict[int, int]) -> None:
        """Discard what was appended since ``rows`` were committed, also on disk."""
        self.close()
        self.rows = dict(rows)
        self.__post_init__()

    def sync(self) -> None:
        """Sync everything appended so far to disk; only then may the catalogue refer to it."""
        if self._descriptor is None:
            return
        _write_all(self._descriptor, header(self.rows[self._current], self.dim, self.kind.dtype), 0)
        os.fsync(self._descriptor)
        if self._new_file:
            sync_folder(self.folder)
            self._new_file = False

    def close(self) -> None:
        """Release the open file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _path(self, shard: int) -> Path:
        return self.folder / self.kind.file_name(shard)

    def _open(self) -> int:
        if self._descriptor is None:
            path = self._path(self._current)
            self._new_file = not path.exists()
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.rows.setdefault(self._current, 0)
        return self._descriptor

    def _cut(self, path: Path, rows: int) -> None:
        size = HEADER_BYTES + rows * self.kind.row_bytes(self.dim)
        if path.stat().st_size < size:
            raise Damaged(f"{path} has {path.stat().st_size} bytes, its {rows} committed rows need {size}")
        with path.open("r+b") as file:
            file.truncate(size)
            file.write(header(rows, self.dim, self.kind.dtype))
            file.flush()
            os.fsync(file.fileno())


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


class ShardReader:
    """Memory-mapped reads from the shards of one kind; safe from any number of threads.

    ``rows`` maps shard numbers to the rows that may be read. Raises ``Damaged`` when a file is missing, too short or
    begins with another header.
    """

    def __init__(self, folder: Path, kind: ShardKind, dim: int, rows: Mapping[int, int]) -> None:
        self.kind = kind
        self.dim = dim
        self._folder = folder
        self._maps = {shard: self._map(folder / kind.file_name(shard), count) for shard, count in rows.items()}

    def grown(self, rows: Mapping[int, int]) -> ShardReader:
        """A reader that may read ``rows`` too: shards that are new, or have grown since this one was opened.

        What did not grow is shared with this reader, which goes on as before.
        """
        more = {shard: count for shard, count in rows.items() if count > len(self._maps.get(shard, ()))}
        if not more:
            return self
        reader = ShardReader(self._folder, self.kind, self.dim, more)
        reader._maps = {**self._maps, **reader._maps}
        return reader

    def rows(self, shard: int, row: int, count: int) -> Array:
        """A ``(count, dim)`` view into one shard."""
        return self._maps[shard][row : row + count]

    def gather(self, shards_N: npt.NDArray[np.integer], rows_N: npt.NDArray[np.integer]) -> Array:
        """One row for each place: ``(N, dim)`` in the kind's dtype."""
        out_ND = np.empty((len(rows_N), self.dim), dtype=self.kind.dtype)
        for shard in np.unique(shards_N):
            here_N = shards_N == shard
            out_ND[here_N] = self._maps[int(shard)][rows_N[here_N]]
        return out_ND

    def gather_blocks(
        self,
        shards_N: npt.NDArray[np.integer],
        rows_N: npt.NDArray[np.integer],
        counts_N: npt.NDArray[np.integer],
        width: int,
    ) -> Array:
        """``counts_N`` rows from each place on: ``(N, width, dim)``, zeros where a block is shorter than ``width``.

        The rows of a block stand together, so each is one copy from the map, and nothing is touched but what was asked.
        """
        out_NFD = np.empty((len(rows_N), width, self.dim), dtype=self.kind.dtype)
        blocks = zip(out_NFD, shards_N.tolist(), rows_N.tolist(), counts_N.tolist(), strict=True)
        for block_FD, shard, row, count in blocks:
            if count:
                block_FD[:count] = self._maps[shard][row : row + count]
            if count < width:
                block_FD[count:] = 0
        return out_NFD

    def let_go(self) -> None:
        """Release mapped pages: what was read stays in the system's cache, but no longer counts as this process's
        memory.
        """
        for rows in self._maps.values():
            base: object = rows
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                base.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Drop the memory maps."""
        self._maps = {}

    def _map(self, path: Path, rows: int) -> Array:
        needed = HEADER_BYTES + rows * self.kind.row_bytes(self.dim)
        if not path.exists():
            raise Damaged(f"{path} is missing; restore it from a copy, or index its videos again")
        if path.stat().st_size < needed:
            raise Damaged(f"{path} has {path.stat().st_size} bytes, its {rows} rows need {needed}; restore it")
        header_rows(path, self.dim, self.kind.dtype)
        if rows == 0:
            return np.zeros((0, self.dim), dtype=self.kind.dtype)
        mapped = np.memmap(path, dtype=self.kind.dtype, mode="r", offset=HEADER_BYTES, shape=(rows, self.dim))
        return np.asarray(mapped)
