"""Weight files: reading them into a state dict, and loading a state dict into a module strictly.

In: a path (safetensors, a PyTorch state dict, or one of OpenAI's TorchScript archives). Out: ``{name: tensor}`` on the
CPU. No file is ever unpickled beyond plain tensors and containers, and no program in a file is loaded.

    ValueError
    └── WeightsError          a file cannot be read, or its tensors do not fit the module
        └── CheckpointError   (model.checkpoint)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model.clip.torchscript import is_torchscript, read_torchscript

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts put the state dict

LISTED_NAMES = 8  # names that an error spells out before it counts the rest


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
