"""Checkpoints: NAME.safetensors (weights and EMCL state) beside NAME.json (configuration and metadata).

In: an ``EMCLNet``. Out: two files that rebuild it anywhere, without the names, tags or network it came from; nothing is
ever pickled. The *fingerprint* identifies a model by content: every index records it. Weights may be stored in fp16 to
halve the file; a fingerprint is always that of the float32 values as loaded, so a net loaded from fp16 has one
fingerprint whatever its precision, and it differs from that of the net before it was rounded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.clip.compat import import_open_clip
from model.clip.towers import Precision, build_clip
from model.clip.weights import WeightsError, load_strictly, read_weights, tensor_digest
from model.config import EMCLConfig, ModelConfig, SearchConfig, load_mapping, problems_of
from model.durable import sync_file, write_atomically
from model.net import EMCLNet

FORMAT_VERSION = 1

# Heads of other tasks: they read the features that a fingerprint identifies and do not change them.
_TASK_HEADS = ("captioner.", "answerer.")


class CheckpointError(WeightsError):
    """A checkpoint cannot be written or read; the message names the file and what is wrong with it."""


class _Description(BaseModel):
    """What NAME.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    config: ModelConfig
    metadata: dict[str, Any] = {}


def save_checkpoint(
    net: EMCLNet,
    path: Path,
    *,
    metadata: dict[str, Any] | None = None,
    dtype: Literal["fp32", "fp16"] = "fp32",
) -> Path:
    """Write ``path`` (NAME.safetensors, or NAME) and its NAME.json, atomically; return the weights' path.

    ``dtype="fp16"`` stores weight matrices in half precision; vectors, scalars and EMCL state stay float32.
    ``metadata`` is anything that JSON can hold. Raises ``CheckpointError`` for weights that are not finite or overflow
    fp16, and for a net that was converted to another precision.
    """
    if net.clip.precision != "fp32":
        raise CheckpointError(f"the net was converted to {net.clip.precision}, which lost digits; save it in fp32")
    weights_path, json_path = _paths(path)
    state = {name: _stored(name, tensor, dtype) for name, tensor in net.state_dict().items()}
    description = _Description(
        format_version=FORMAT_VERSION,
        fingerprint=_fingerprint({name: tensor_digest(tensor) for name, tensor in state.items()}, net),
        config=_portable_config(net),
        metadata=metadata or {},
    )
    text = _text(description)
    weights_path.parent.mkdir(parents=True, exist_ok=True)
    _replace_together(
        {
            weights_path: lambda file: save_file(state, file, metadata={"format": "pt"}),
            json_path: lambda file: file.write_text(text, encoding="utf-8"),
        }
    )
    return weights_path


def load_checkpoint(path: Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32") -> EMCLNet:
    """Rebuild a net from its two files, in evaluation mode on ``device``.

    Raises ``FileNotFoundError`` if either file is missing, and ``CheckpointError`` for a format of another version, a
    damaged file, weights that do not fit their configuration (with missing and unexpected names), and files that do not
    belong together.
    """
    weights_path, json_path = _paths(Path(path))
    description = _read_description(weights_path, json_path)
    net = EMCLNet(description.config, build_clip(description.config.clip, load_weights=False))
    try:
        load_strictly(net, read_weights(weights_path), source=str(weights_path))
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    if (found := fingerprint(net)) != description.fingerprint:
        raise CheckpointError(
            f"{weights_path} holds model {found[:12]}, but {json_path.name} beside it describes "
            f"{description.fingerprint[:12]}: a file is damaged, or saving was interrupted, or the two are of "
            "different checkpoints; restore both from one"
        )
    net.clip.set_precision(precision)
    return net.eval().to(device)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of the weights. Raises as ``load_checkpoint`` does; weights are not read."""
    return _read_description(*_paths(Path(path))).metadata


def stored_dtype(path: Path) -> Literal["fp32", "fp16"]:
    """Return the precision that ``save_checkpoint`` was given for this file."""
    with safe_open(_paths(Path(path))[0], framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return "fp16" if "F16" in kinds else "fp32"


def rewrite_settings(path: Path, *, emcl: EMCLConfig, search: SearchConfig, metadata: dict[str, Any]) -> Path:
    """Change in NAME.json, atomically, what neither weights nor fingerprint depend on; return the weights' path.

    Raises ``CheckpointError`` for EMCL settings that need another state (mode, number of bases, seed), which is stored
    with the weights: write those with ``save_checkpoint``.
    """
    weights_path, json_path = _paths(Path(path))
    found = _read_description(weights_path, json_path)
    own = found.config.emcl
    for key in ("mode", "num_bases", "seed"):
        if getattr(own, key) != getattr(emcl, key):
            raise CheckpointError(
                f"{weights_path} holds the state of EMCL with {key} {getattr(own, key)}, not {getattr(emcl, key)}; "
                "save the net with the new state instead"
            )
    config = found.config.model_copy(update={"emcl": emcl, "search": search})
    changed = found.model_copy(update={"config": config, "metadata": metadata})
    write_atomically(json_path, _text(changed).encode())
    return weights_path


def _text(description: _Description) -> str:
    return json.dumps(description.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def fingerprint(net: EMCLNet) -> str:
    """Identify a model by content: 64 hex digits over all its tensors, in name order, and its encoder's configuration.

    Equal for the same weights whatever file, name or pretrained tag they came from, and whatever precision they were
    converted to. Sampling, pooling temperature, EMCL settings and heads of other tasks are not part of it: stored
    features do not change.
    """
    return _fingerprint(_digests(net), net)


def former_fingerprints(net: EMCLNet) -> frozenset[str]:
    """Fingerprints of the same weights in earlier releases that prepared frames differently; empty if none did.

    They cropped the centre and resized bicubically whatever the tag was trained with, and normalised weights from a
    local file as OpenAI's. A store with such a fingerprint holds wrong features.
    """
    cfg = net.clip.description["preprocess_cfg"]
    clip = import_open_clip()
    usual = {"mean": list(clip.OPENAI_DATASET_MEAN), "std": list(clip.OPENAI_DATASET_STD)}
    cropped = {key: cfg[key] for key in usual}
    wrong = [former for former in (cropped, usual) if former != cfg]
    if cropped == cfg and net.config.clip.custom is not None:  # a checkpoint says what it was trained with
        return frozenset()
    digests = _digests(net) if wrong else {}
    return frozenset(_fingerprint(digests, net, {**net.clip.description, "preprocess_cfg": former}) for former in wrong)


def _digests(net: EMCLNet) -> dict[str, bytes]:
    originals = {f"clip.{name}": digest for name, digest in net.clip.original_digests.items()}
    return {name: originals.get(name) or tensor_digest(tensor) for name, tensor in net.state_dict().items()}


def _fingerprint(digests: Mapping[str, bytes], net: EMCLNet, description: Mapping[str, Any] | None = None) -> str:
    total = hashlib.sha256()
    for name in sorted(name for name in digests if not name.startswith(_TASK_HEADS)):
        total.update(name.encode() + b"\0" + digests[name])
    encoder: dict[str, Any] = {
        "clip": net.clip.description if description is None else description,
        "tokenizer": net.config.tokenizer.model_dump(mode="json"),
        "temporal": net.config.temporal.model_dump(mode="json"),
    }
    if net.config.frame_average != "mean":  # it changes stored vectors; absent by default, as it came later
        encoder["frame_average"] = net.config.frame_average
    total.update(json.dumps(encoder, sort_keys=True, separators=(",", ":")).encode())
    return total.hexdigest()


def _portable_config(net: EMCLNet) -> ModelConfig:
    """Return the config with the towers spelt out, so that loading needs neither tag nor the file they came from."""
    clip = net.config.clip.model_copy(update={"custom": net.clip.description, "pretrained": None})
    return net.config.model_copy(update={"clip": clip})


def is_emcl_state(name: str) -> bool:
    """Whether a tensor of a net is the state of an EM pass: its own, or that of a head."""
    return "emcl" in name.split(".")[:-1]


def _stored(name: str, tensor: Tensor, dtype: Literal["fp32", "fp16"]) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds values that are not finite; the training diverged, nothing was saved")
    if dtype == "fp32" or tensor.ndim < 2 or not tensor.is_floating_point() or is_emcl_state(name):
        return tensor
    half = tensor.half()
    if not bool(torch.isfinite(half).all()):
        raise CheckpointError(
            f"{name} holds {tensor.abs().max():.3g}, more than fp16 can (65504); save with dtype='fp32'"
        )
    return half


def _read_description(weights_path: Path, json_path: Path) -> _Description:
    for file, other in ((weights_path, json_path), (json_path, weights_path)):
        if not file.is_file():
            raise FileNotFoundError(f"checkpoint file {file} does not exist; a checkpoint is that and {other.name}")
    try:
        content = load_mapping(json_path)
    except ValueError as error:  # bad JSON, or not text at all
        raise CheckpointError(f"checkpoint description {json_path} is damaged: {error}") from error
    if (version := content.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(
            f"{json_path} has checkpoint format {version!r}, this program reads {FORMAT_VERSION}; "
            "use the release that wrote it, or train again"
        )
    try:
        return _Description.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(f"{json_path} is not a valid checkpoint description: {problems_of(error)}") from error


def _paths(path: Path) -> tuple[Path, Path]:
    """NAME.safetensors and NAME.json, from either of them or from NAME."""
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")


def _replace_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write all files beside their places and flush them to the disk, then rename them at once.

    A reader sees each file old or new, whole, and only a crash between the renames can leave one of each. The temporary
    names are fixed, so that the next writer overwrites what a killed one left.
    """
    temporaries = {path: path.with_name(f".{path.name}.tmp") for path in writers}
    try:
        for path, write in writers.items():
            write(temporaries[path])
            sync_file(temporaries[path])
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in writers}:
        sync_file(folder)
