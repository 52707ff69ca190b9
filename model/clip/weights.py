"""Weight files: reading them into a state dict, and loading a state dict into a module strictly.

In: a path (safetensors, a PyTorch state dict, or one of OpenAI's TorchScript archives). Out: ``{name: tensor}`` on the
CPU. No file is ever unpickled beyond plain tensors and containers, and no program in a file is loaded: the tensors of
a TorchScript archive are uncompressed in the records ``data/N`` of a zip file; ``data.pkl``, which names the modules,
is unpickled with an allow-list (tensors, storages, lists, dictionaries, modules as bags of attributes).

    ValueError
    └── WeightsError          a file cannot be read, or its tensors do not fit the module
        └── CheckpointError   (model.checkpoint)
"""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

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

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts put the state dict
LISTED_NAMES = 8  # names that an error spells out before it counts the rest


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


class WeightsError(ValueError):
    """A weights file cannot be read, or does not fit the model it is meant for."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file, on the CPU, in the dtypes they are stored in.

    Unwraps ``{"state_dict": …}`` (also ``model_state_dict``, ``model``) and the ``module.`` prefix of distributed
    training. Raises ``FileNotFoundError``, or ``WeightsError`` for a file that is damaged, holds anything but tensors,
    or would need unpickling of code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist")
    try:
        content = _read(path)
    except Exception as error:  # torch's restricted unpickler meets garbage with errors of any kind
        raise WeightsError(
            f"{path} cannot be read as a weights file ({_first_line(error)}); expected safetensors (.safetensors) or a "
            "PyTorch state dict of plain tensors; if it was copied or downloaded, fetch it again"
        ) from error
    state = _unwrapped(content)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()) or not state:
        raise WeightsError(f"{path} holds {_summary(state)}, expected a mapping of names to tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _unwrapped(content: Any) -> Any:
    if not isinstance(content, Mapping):
        return content
    return next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy ``state`` into ``module``, casting to the module's dtypes.

    ``source`` names the origin in errors. Raises ``WeightsError`` that lists missing and unexpected names and
    differing shapes; the module is unchanged then.
    """
    expected = module.state_dict()
    problems = [
        _listed("missing", sorted(expected.keys() - state.keys())),
        _listed("unexpected", sorted(state.keys() - expected.keys())),
        _listed(
            "of another shape",
            [
                f"{name} (got {tuple(state[name].shape)}, expected {tuple(tensor.shape)})"
                for name, tensor in expected.items()
                if name in state and state[name].shape != tensor.shape
            ],
        ),
    ]
    if any(problems):
        raise WeightsError(f"{source} does not fit this model; " + "; ".join(filter(None, problems)))
    module.load_state_dict(state, strict=True)


def tensor_digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's shape and values; floating values count as float32, so storage in fp16 changes nothing."""
    values = tensor.detach().cpu()
    values = (values.float() if values.is_floating_point() else values).contiguous()
    header = f"{values.dtype} {tuple(values.shape)}\n".encode()
    return hashlib.sha256(header + values.numpy().tobytes()).digest()


def _listed(kind: str, names: Iterable[str]) -> str:
    listed = list(names)
    if not listed:
        return ""
    more = f" and {len(listed) - LISTED_NAMES} more" if len(listed) > LISTED_NAMES else ""
    return f"{len(listed)} {kind}: {', '.join(listed[:LISTED_NAMES])}{more}"


def _first_line(error: Exception) -> str:
    if found := re.search(r"Unsupported (?:global|class): (?:GLOBAL )?(\S+)", str(error)):  # torch says how to run it
        return f"it holds Python objects of {found[1]}, whose code is never run"
    if "weights_only" in str(error):
        return "it is damaged, or nothing that torch.save wrote"
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _summary(value: object) -> str:
    if isinstance(value, Mapping):
        kinds = sorted({type(item).__name__ for item in value.values()})
        return f"a mapping to {', '.join(kinds) or 'nothing'}"
    return f"a {type(value).__name__}"
