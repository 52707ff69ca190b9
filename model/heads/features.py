"""Exported features: what any baseline computed, in one file without code, ``.npz`` or ``.safetensors``.

    kind               pooled, frames, tokens, experts or mixture
    video, text        what ``model.heads`` expects of the kind, see ``ARRAYS``
    owner (T,)         the video of each text; a video's texts stand together, in the order of the videos
    video_ids (V,)     names, texts (T,) the sentences: for people and for pairing; may be left out
    logit_scale ()     the logarithm of the scale, for probabilities; may be left out
    settings           JSON: whatever says how the features came about; EMCL-Net's own settings for kind frames

In ``.safetensors`` ``kind``, ``video_ids``, ``texts`` and ``settings`` are metadata (the lists as JSON). Every array is
checked: name, shape, dtype, finite. Vectors that a head wants at unit norm are normalised when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from model.heads.base import HEAD_KINDS, HeadBatch, HeadKind
from model.heads.experts import ExpertsBatch
from model.heads.frames import FramesBatch
from model.heads.mixture import MixtureBatch
from model.heads.pooled import PooledBatch
from model.heads.tokens import TokenBatch


class FeaturesError(ValueError):
    """A features file that is damaged, incomplete, or of another kind. The message names file, key and shapes."""


# The arrays of each kind: name, shape in letters (equal letters are equal sizes), whether it must be there.
# T texts, V videos, F frames, L words, M experts, D and E channels. Masks are bool or 0 and 1.
ARRAYS: Mapping[HeadKind, Mapping[str, tuple[str, bool]]] = {
    "pooled": {"video": ("VD", True), "text": ("TD", True)},
    "frames": {"video": ("VFD", True), "video_mask": ("VF", True), "text": ("TD", True), "emcl_state": ("SK", False)},
    "tokens": {
        "video": ("VFD", True),
        "video_mask": ("VF", True),
        "text": ("TLD", True),
        "text_mask": ("TL", True),
        "video_weight": ("VF", False),
        "text_weight": ("TL", False),
    },
    "experts": {
        "video": ("VMD", True),
        "text": ("TMD", True),
        "video_weight": ("VM", False),
        "text_weight": ("TM", False),
    },
    "mixture": {
        "video": ("VD", True),
        "text": ("TD", True),
        "second_video": ("VE", False),
        "second_text": ("TE", False),
        "extra_similarity": ("TV", False),
    },
}
_NAMES = {"video_ids": "V", "texts": "T"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """Features of T texts and V videos. ``arrays`` are those of ``ARRAYS``, float32 or bool, as they were exported."""

    kind: HeadKind
    arrays: Mapping[str, NDArray[Any]]
    video_of_text_T: NDArray[np.intp]
    video_ids: Sequence[str] = ()
    texts: Sequence[str] = ()
    logit_scale: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def multi_sentence(self) -> bool:
        """Whether some video has several texts."""
        return len(self.video_of_text_T) > len(self.arrays["video"])

    def batch(self) -> HeadBatch:
        """Return what the kind's head reads."""
        parts = {name: torch.from_numpy(np.array(array)) for name, array in self.arrays.items()}
        return cast(HeadBatch, _BATCHES[self.kind](parts))


def _pooled(parts: Mapping[str, Tensor]) -> PooledBatch:
    return PooledBatch(video_VD=F.normalize(parts["video"], dim=-1), text_TD=F.normalize(parts["text"], dim=-1))


def _frames(parts: Mapping[str, Tensor]) -> FramesBatch:
    return FramesBatch(features_VFD=parts["video"], mask_VF=parts["video_mask"], text_TD=parts["text"])


def _tokens(parts: Mapping[str, Tensor]) -> TokenBatch:
    return TokenBatch(
        video_VFD=F.normalize(parts["video"], dim=-1),
        video_mask_VF=parts["video_mask"],
        text_TLD=F.normalize(parts["text"], dim=-1),
        text_mask_TL=parts["text_mask"],
        video_weight_VF=parts.get("video_weight"),
        text_weight_TL=parts.get("text_weight"),
    )


def _experts(parts: Mapping[str, Tensor]) -> ExpertsBatch:
    return ExpertsBatch(
        video_VMD=parts["video"],
        text_TMD=parts["text"],
        video_weight_VM=parts.get("video_weight"),
        text_weight_TM=parts.get("text_weight"),
    )


def _mixture(parts: Mapping[str, Tensor]) -> MixtureBatch:
    if "extra_similarity" in parts:
        return MixtureBatch(pooled=_pooled(parts), second_TV=parts["extra_similarity"])
    second_TV = F.normalize(parts["second_text"], dim=-1) @ F.normalize(parts["second_video"], dim=-1).T
    return MixtureBatch(pooled=_pooled(parts), second_TV=second_TV)


_BATCHES = {"pooled": _pooled, "frames": _frames, "tokens": _tokens, "experts": _experts, "mixture": _mixture}


def read_features(path: Path, *, kind: HeadKind | None = None) -> FeatureSet:
    """Read and check a features file. ``kind`` is what the caller expects, or what a file without one is.

    Raises ``FeaturesError`` that names the key, the shape found and the shape expected; ``FileNotFoundError``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no features file {path}")
    if path.suffix not in (".npz", ".safetensors"):
        raise FeaturesError(f"{path} must be a .npz or .safetensors file of features, see docs/heads.md")
    arrays = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    stated = arrays.pop("kind", None)
    found = kind if stated is None else str(stated)
    if found not in ARRAYS:
        known = ", ".join(ARRAYS)
        if found in HEAD_KINDS:
            raise FeaturesError(
                f"{path}: kind {found} scores pairs by a network, which no features file carries; use {known}"
            )
        raise FeaturesError(f"{path}: kind is {found!r}, expected one of {known}; give --head where the file has none")
    if kind is not None and found != kind:
        raise FeaturesError(f"{path} holds features of kind {found}, not {kind}; leave --head out")
    return _checked(path, cast(HeadKind, found), arrays)


def write_features(path: Path, features: FeatureSet) -> None:
    """Write a features file, ``.npz`` or ``.safetensors``. Raises ``ValueError`` for another suffix."""
    arrays = {**features.arrays, "owner": features.video_of_text_T.astype(np.int64)}
    if features.logit_scale is not None:
        arrays["logit_scale"] = np.array(features.logit_scale, np.float32)
    words = {
        "kind": features.kind,
        "video_ids": json.dumps(list(features.video_ids)),
        "texts": json.dumps(list(features.texts)),
        "settings": json.dumps(dict(features.settings)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        lists = {name: np.array(list(getattr(features, name)), dtype=np.str_) for name in _NAMES}
        scalars = {"kind": np.array(words["kind"]), "settings": np.array(words["settings"])}
        np.savez(path, **arrays, **lists, **scalars)  # type: ignore[arg-type]
    elif path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata=words)
    else:
        raise ValueError(f"{path} must end in .npz or .safetensors")


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError) as error:
        raise FeaturesError(f"{path} is not a readable .npz of plain arrays: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="np") as file:
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            words = file.metadata() or {}
    except (OSError, SafetensorError, TypeError) as error:
        raise FeaturesError(f"{path} is not a readable .safetensors file: {error}") from error
    for name in _NAMES:
        if name in words:
            arrays[name] = np.array(_json(path, name, words[name], list), dtype=np.str_)
    return {**arrays, **{name: words[name] for name in ("kind", "settings") if name in words}}


def _json(path: Path, name: str, text: str, wanted: type) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise FeaturesError(f"{path}: {name} is not JSON: {error}") from error
    if not isinstance(value, wanted):
        raise FeaturesError(f"{path}: {name} must be a JSON {wanted.__name__}, got {type(value).__name__}")
    return value


def _checked(path: Path, kind: HeadKind, arrays: dict[str, Any]) -> FeatureSet:
    settings = _json(path, "settings", str(arrays.pop("settings")), dict) if "settings" in arrays else {}
    names = {name: [str(text) for text in np.ravel(arrays.pop(name))] if name in arrays else [] for name in _NAMES}
    owner = arrays.pop("owner", None)
    scale = arrays.pop("logit_scale", None)
    wanted = ARRAYS[kind]
    if unknown := sorted(arrays.keys() - wanted.keys()):
        raise FeaturesError(f"{path}: unknown keys {', '.join(unknown)} for kind {kind}; it has {', '.join(wanted)}")
    if missing := [name for name, (_, needed) in wanted.items() if needed and name not in arrays]:
        raise FeaturesError(f"{path}: kind {kind} lacks {', '.join(missing)}")
    sizes: dict[str, int] = {}
    checked = {name: _array(path, name, arrays[name], wanted[name][0], sizes) for name in wanted if name in arrays}
    if (
        kind == "mixture"
        and "extra_similarity" not in checked
        and not {"second_video", "second_text"} <= checked.keys()
    ):
        raise FeaturesError(f"{path}: kind mixture needs extra_similarity, or second_video and second_text")
    for name, letter in _NAMES.items():
        if names[name] and len(names[name]) != sizes[letter]:
            raise FeaturesError(f"{path}: {name} has {len(names[name])} entries, expected {sizes[letter]}")
    return FeatureSet(
        kind=kind,
        arrays=checked,
        video_of_text_T=_owner(path, owner, sizes),
        video_ids=names["video_ids"],
        texts=names["texts"],
        logit_scale=None if scale is None else _scale(path, scale),
        settings=settings,
    )


def _array(path: Path, name: str, array: NDArray[Any], letters: str, sizes: dict[str, int]) -> NDArray[Any]:
    expected = ", ".join(f"{letter} = {sizes[letter]}" if letter in sizes else letter for letter in letters)
    if array.ndim != len(letters) or any(
        sizes.get(letter, n) != n for letter, n in zip(letters, array.shape, strict=True)
    ):
        raise FeaturesError(f"{path}: {name} has shape {array.shape}, expected ({expected})")
    if 0 in array.shape:
        raise FeaturesError(f"{path}: {name} is empty: shape {array.shape}")
    sizes.update(zip(letters, array.shape, strict=True))
    if name.endswith("_mask"):
        if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
            raise FeaturesError(f"{path}: {name} must be bool, or 0 and 1, got {array.dtype}")
        mask = array.astype(bool)
        if bad := int((~mask.any(axis=1)).sum()):
            raise FeaturesError(f"{path}: {bad} rows of {name} have no real entry")
        return mask
    if array.dtype.kind != "f":
        raise FeaturesError(f"{path}: {name} has dtype {array.dtype}, expected floating point")
    if bad := int((~np.isfinite(array)).sum()):
        raise FeaturesError(f"{path}: {name} holds {bad} values that are NaN or infinite; export the features again")
    if name.endswith("_weight") and (array < 0).any():
        raise FeaturesError(f"{path}: {name} holds negative weights")
    return array.astype(np.float32)


def _owner(path: Path, owner: NDArray[Any] | None, sizes: Mapping[str, int]) -> NDArray[np.intp]:
    texts, videos = sizes["T"], sizes["V"]
    if owner is None:
        if texts != videos:
            raise FeaturesError(f"{path}: {texts} texts and {videos} videos need owner (T,), the video of each text")
        return np.arange(texts)
    if owner.shape != (texts,) or owner.dtype.kind not in "iu":
        raise FeaturesError(f"{path}: owner is {owner.dtype} {owner.shape}, expected integers ({texts},)")
    if owner.min() < 0 or owner.max() >= videos:
        raise FeaturesError(f"{path}: owner names videos {owner.min()} to {owner.max()}, there are 0 to {videos - 1}")
    if (np.diff(owner) < 0).any() or len(np.unique(owner)) != videos:
        raise FeaturesError(f"{path}: owner must rise through all {videos} videos: a video's texts stand together")
    return owner.astype(np.intp)


def _scale(path: Path, scale: NDArray[Any]) -> float:
    if scale.size != 1 or not np.isfinite(scale).all():
        raise FeaturesError(f"{path}: logit_scale must be one finite number, got {scale!r}")
    return float(scale.reshape(()))
