"""The tensors of a TorchScript archive, as OpenAI publishes CLIP, without its program.

``torch.jit.load`` compiles and can run the code that an archive brings. Nothing of it is needed for the weights: they
are uncompressed in the records ``data/N`` of the zip file, and ``data.pkl`` says which module holds which. It is
unpickled here with an allow-list: tensors, their storages, lists, dictionaries, and modules as bags of attributes.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DEEPEST = 100  # modules within modules; CLIP has 7


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that ``torch.jit.save`` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of all modules by dotted name, on the CPU, in the dtypes they are stored in.

    Raises ``pickle.UnpicklingError`` for an archive with anything else than modules, tensors and plain values, and
    ``zipfile.BadZipFile`` for a damaged one.
    """
    with zipfile.ZipFile(path) as archive:
        return dict(_tensors(_Unpickler(archive).load(), "", _DEEPEST))


class _Module:
    """A module of the archive: its attributes."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module holds a {type(state).__name__}, expected its attributes by name")
        self.attributes = state


class _Storage:
    """The class of a storage, as far as it says the dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Unpickler(pickle.Unpickler):
    """Reads ``data.pkl``; only what ``find_class`` knows can be built."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        self._archive = archive
        self._folder = pickled.removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}
        order = f"{self._folder}byteorder"
        if order in archive.namelist() and archive.read(order).decode("ascii") != sys.byteorder:
            raise pickle.UnpicklingError(f"the archive was written on a machine that is not {sys.byteorder}-endian")
        super().__init__(archive.open(self._record(pickled)))

    def find_class(self, module: str, name: str) -> Any:
        """Only the builders of plain values."""
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return _Storage(_DTYPES[name])
        if (found := _BUILDERS.get((module, name))) is not None:
            return found
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage, as a tensor of one dimension."""
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not str(key).isalnum():
            raise pickle.UnpicklingError(f"{pid!r} is not a storage")
        if key not in self._storages:
            content = self._archive.read(self._record(f"{self._folder}data/{key}"))
            values = torch.frombuffer(bytearray(content), dtype=storage.dtype) if content else torch.empty(0)
            if len(values) < count:
                raise pickle.UnpicklingError(f"storage {key} has {len(values)} elements, expected {count}")
            self._storages[key] = values
        return self._storages[key]

    def _record(self, name: str) -> zipfile.ZipInfo:
        record = self._archive.getinfo(name)
        if record.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"{name} is compressed, which TorchScript never does")
        return record


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor has no storage")
    if min([offset, *size, *stride], default=0) < 0:
        raise pickle.UnpicklingError("a tensor has a negative size, stride or offset")
    return storage.as_strided(tuple(size), tuple(stride), offset)  # raises RuntimeError beyond the storage


def _values(values: Any, *_: Any) -> Any:
    return values


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch.jit._pickle", name): _values
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Module):
        if not depth:
            raise pickle.UnpicklingError(f"{name} is a module within {_DEEPEST} modules")
        for key, inner in value.attributes.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key), depth - 1)
