"""Where CLIP models come from: open_clip's table of architectures and tags, a model dictionary, a file, the hub.

In: a ``ClipConfig``. Out: its *description*, the open_clip model dictionary that says everything about the towers but
their weights, and the open_clip model itself, with random or pretrained weights.

    ValueError
    ├── ClipError             the towers cannot be built as asked
    │   └── DownloadError     their weights are not here and could not be fetched
    └── WeightsError          a weights file is damaged or does not fit (model.clip.weights)
"""

from __future__ import annotations

import difflib
import logging
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from model.clip.compat import import_open_clip
from model.clip.preprocess import Preprocess
from model.clip.weights import load_strictly, read_weights
from model.config import ClipConfig

logger = logging.getLogger(__name__)

# Scalars that OpenAI's state dicts carry beside the weights; no other exporter writes them.
_OPENAI_MARKERS = frozenset({"input_resolution", "context_length", "vocab_size"})
_PROBE_SECONDS = 10.0
_PLAIN_NAME = re.compile(r"\w+(\.\w+)?")


class ClipError(ValueError):
    """The towers cannot be built as asked: unknown architecture or tag, or a wrong model dictionary."""


class DownloadError(ClipError):
    """Pretrained weights are not in the local cache and could not be fetched."""


def create_clip(config: ClipConfig, *, load_weights: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Build the open_clip model of a configuration, on the CPU in float32, and return it with its description.

    Without ``config.pretrained``, or with ``load_weights=False``, the weights are random. A file in OpenAI's layout
    makes the activation quick-gelu, whatever the architecture's name says. Raises ``ClipError``, ``DownloadError``,
    ``WeightsError`` or ``FileNotFoundError``, each with what to do next.
    """
    description = describe_clip(config)
    source = config.pretrained if load_weights else None
    if source is None:
        return _instantiate(description), description
    if _is_tag(config):
        return _create_pretrained(config.architecture, source, description), description
    state = read_weights(Path(source))
    if state.keys() >= _OPENAI_MARKERS:
        description["quick_gelu"] = True
    elif config.custom is None and not description["quick_gelu"]:
        _warn_of_activation(config.architecture, source)
    model = _instantiate(description)
    _load_state(model, state, source)
    return model, description


def describe_clip(config: ClipConfig) -> dict[str, Any]:
    """Return the open_clip model dictionary of a configuration, a copy, without loading any weights.

    ``quick_gelu`` and ``preprocess_cfg`` are those of the pretrained tag: open_clip only warns when a tag was trained
    with another activation than the named architecture has, as ``openai`` with ``ViT-B-32``. ``preprocess_cfg`` holds
    ``mean`` and ``std``, and ``resize_mode``, ``interpolation`` and ``fill_color`` where they differ from CLIP's own
    (shortest, bicubic, 0), so that the fingerprints of models with CLIP's preprocessing are what they always were.
    Raises ``ClipError`` for an unknown architecture or tag, and for a dictionary without the three necessary keys.
    """
    open_clip = import_open_clip()
    description = _named(config.architecture) if config.custom is None else deepcopy(config.custom)
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - description.keys():
        raise ClipError(f"clip.custom must be an open_clip model dictionary; it lacks {', '.join(sorted(missing))}")
    tag = open_clip.get_pretrained_cfg(config.architecture, config.pretrained) if _is_tag(config) else {}
    description["quick_gelu"] = bool(description.get("quick_gelu", False) or tag.get("quick_gelu", False))
    _check_names(description)
    description["preprocess_cfg"] = _preprocess_cfg(config, tag, description.get("preprocess_cfg", {}))
    # Towers that timm or transformers would fetch on their own get our weights instead.
    if "timm_model_name" in description["vision_cfg"]:
        description["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in description["text_cfg"]:
        description["text_cfg"]["hf_model_pretrained"] = False
    return description


def _check_names(description: dict[str, Any]) -> None:
    """Raise ``ClipError`` for a tower that would be fetched or read from a folder: names of another form do both."""
    timm_name = description["vision_cfg"].get("timm_model_name")
    if timm_name is not None:
        import timm

        if not timm.is_model(str(timm_name)) or not _PLAIN_NAME.fullmatch(str(timm_name)):
            raise ClipError(
                f"vision_cfg.timm_model_name {timm_name!r} is not an architecture of timm {timm.__version__}; names of "
                "repositories and folders are not followed"
            )
    for key in ("hf_model_name", "hf_tokenizer_name"):
        name = description["text_cfg"].get(key)
        if name is not None and name not in _names_in_table(key):
            raise ClipError(
                f"text_cfg.{key} {name!r} occurs in no architecture of open_clip; other repositories and folders are "
                "not followed"
            )


@cache
def _names_in_table(key: str) -> frozenset[str]:
    open_clip = import_open_clip()
    texts = (open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models())
    return frozenset(text[key] for text in texts if text.get(key) is not None)


_CLIP_PREPROCESSING = {"resize_mode": "shortest", "interpolation": "bicubic", "fill_color": 0}


def _preprocess_cfg(config: ClipConfig, tag: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing of a description: ``given`` in a dictionary, else the tag's, else that of all tags."""
    open_clip = import_open_clip()
    if not tag and config.custom is None:
        tag = _common_preprocessing(config)
    cfg: dict[str, Any] = {
        "mean": list(given.get("mean") or tag.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(given.get("std") or tag.get("std") or open_clip.OPENAI_DATASET_STD),
    }
    for key, usual in _CLIP_PREPROCESSING.items():
        if (value := given.get(key, tag.get(key))) not in (None, usual):
            cfg[key] = value
    return cfg


def _common_preprocessing(config: ClipConfig) -> Mapping[str, Any]:
    """What the tags of an architecture have in common: a local weights file does not state its preprocessing.

    Where the tags disagree, CLIP's own is taken, with a warning.
    """
    open_clip = import_open_clip()
    tags = open_clip.list_pretrained_tags_by_model(config.architecture)
    entries = [open_clip.get_pretrained_cfg(config.architecture, tag) for tag in tags]
    found = {key: {str(entry.get(key)) for entry in entries} for key in ("mean", "std", "resize_mode", "interpolation")}
    if entries and all(len(values) == 1 for values in found.values()):
        return dict(entries[0])
    if entries and config.pretrained is not None and config.custom is None:
        logger.warning(
            "%s does not say how frames are to be prepared, and the tags of %s differ; using CLIP's preparation "
            "(centre crop, bicubic)",
            config.pretrained,
            config.architecture,
        )
    return {}


def preprocess_of(description: Mapping[str, Any], *, height: int, width: int) -> Preprocess:
    """How frames become the pictures of a described model, whose image tower takes ``height`` x ``width``.

    Raises ``ClipError`` for a ``preprocess_cfg`` that asks for something unknown.
    """
    cfg = description["preprocess_cfg"]
    try:
        return Preprocess(
            height=height,
            width=width,
            resize_mode=cfg.get("resize_mode", "shortest"),
            interpolation="bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic",
            fill=cfg.get("fill_color", 0),
        )
    except ValueError as error:
        raise ClipError(f"preprocess_cfg of this model dictionary: {error}") from error


def _named(architecture: str) -> dict[str, Any]:
    names: list[str] = import_open_clip().list_models()
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"open_clip knows {len(names)}, such as ViT-B-32"
        raise ClipError(f"unknown CLIP architecture {architecture!r}; {hint}")
    description: dict[str, Any] = import_open_clip().get_model_config(architecture)
    return description


def _is_tag(config: ClipConfig) -> bool:
    """Whether ``pretrained`` names weights of open_clip's table. Raises ``ClipError`` if it is neither tag nor file."""
    if config.pretrained is None or config.custom is not None:
        return False
    open_clip = import_open_clip()
    if open_clip.get_pretrained_cfg(config.architecture, config.pretrained):
        return True
    if Path(config.pretrained).suffix or "/" in config.pretrained or Path(config.pretrained).exists():
        return False
    tags = open_clip.list_pretrained_tags_by_model(config.architecture)
    others = open_clip.list_pretrained_models_by_tag(config.pretrained)
    raise ClipError(
        f"pretrained {config.pretrained!r} is neither a file nor a tag of {config.architecture}; "
        f"its tags are: {', '.join(tags) or 'none'}" + (f"; that one belongs to {', '.join(others)}" if others else "")
    )


def _create_pretrained(architecture: str, tag: str, description: dict[str, Any]) -> nn.Module:
    """Load a tag from the local Hugging Face cache, or else from the hub, through ``open_clip.create_model``."""
    open_clip = import_open_clip()
    repository, _, filename = open_clip.get_pretrained_cfg(architecture, tag)["hf_hub"].rpartition("/")
    cached = _cached_file(repository, filename)
    try:
        if cached is None:
            _require_reachable(_hub())
        model: nn.Module = open_clip.create_model(
            architecture, pretrained=cached or tag, force_quick_gelu=description["quick_gelu"], require_pretrained=True
        )
    except (OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
        if cached is None and (isinstance(error, OSError) or "Failed to download" in str(error)):
            raise DownloadError(_download_message(architecture, tag, f"{_hub()}/{repository}", error)) from error
        raise ClipError(
            f"open_clip could not build {architecture} with weights {tag!r}: {error}; if their file is damaged, delete "
            f"it from {_cache_folder()} to fetch it again"
        ) from error
    return model


def cached_weights(architecture: str, tag: str) -> str | None:
    """The file of a tag's weights in the local Hugging Face cache; None if it is not there."""
    repository, _, filename = import_open_clip().get_pretrained_cfg(architecture, tag)["hf_hub"].rpartition("/")
    return _cached_file(repository, filename) if repository else None


def download_weights(architecture: str, tag: str) -> str:
    """The file of a tag's weights, fetched if it is not cached. Raises ``DownloadError``."""
    if (cached := cached_weights(architecture, tag)) is not None:
        return cached
    open_clip = import_open_clip()
    entry = open_clip.get_pretrained_cfg(architecture, tag)
    try:
        _require_reachable(_hub())
        return str(open_clip.download_pretrained(entry))
    except (OSError, RuntimeError) as error:
        raise DownloadError(_download_message(architecture, tag, f"{_hub()}/{entry['hf_hub']}", error)) from error


def _hub() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _cache_folder() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _cached_file(repository: str, filename: str) -> str | None:
    """Return the weights of a repository in the local cache, of the names that open_clip tries, in its order."""
    from huggingface_hub import try_to_load_from_cache

    constants = import_open_clip().constants
    if filename:
        names = [f"{Path(filename).stem}.safetensors", filename]
    else:
        names = [constants.HF_SAFE_WEIGHTS_NAME, constants.HF_WEIGHTS_NAME]
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((path for path in found if isinstance(path, str)), None)


def _require_reachable(hub: str) -> None:
    """Raise ``OSError`` if the hub cannot be reached; its own client gives up only after most of a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=_PROBE_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()  # it answers, if not to this request
    except urllib.error.URLError as error:
        if isinstance(error.reason, (socket.gaierror, ConnectionError, TimeoutError)):
            raise error.reason from error


def _quick_gelu_name(architecture: str) -> str | None:
    """Return the name of the same architecture with quick-gelu, if open_clip has one."""
    name = f"{architecture.removesuffix('-quickgelu')}-quickgelu"
    return name if name in import_open_clip().list_models() else None


def _warn_of_activation(architecture: str, source: str) -> None:
    if (name := _quick_gelu_name(architecture)) is not None:
        logger.warning(
            "%s does not say which activation it was trained with; %s means GELU. For weights of OpenAI, Meta or DFN "
            "name the model %s",
            source,
            architecture,
            name,
        )


def _download_message(architecture: str, tag: str, origin: str, error: Exception) -> str:
    # A file does not say that its weights want quick-gelu, so the name must.
    entry = import_open_clip().get_pretrained_cfg(architecture, tag)
    name = (_quick_gelu_name(architecture) if entry.get("quick_gelu") else None) or architecture
    reason = str(error).rsplit("Last error: ", 1)[-1].strip().split("\n", 1)[0]
    return (
        f"the weights {tag!r} of {architecture} are not in the local cache and could not be fetched from {origin} "
        f"({reason}). Connect to the network, or set HF_HOME to a Hugging Face cache that holds them, or pass a local "
        f"file: --model {name} --pretrained /path/to/weights.safetensors. On a machine with network, "
        f"`emcl models fetch {name} --pretrained {tag} --to FOLDER` makes a folder for --model FOLDER"
    )


def _instantiate(description: dict[str, Any]) -> nn.Module:
    open_clip = import_open_clip()
    custom_text = description.get("custom_text", False) or "hf_model_name" in description["text_cfg"]
    arguments = {key: deepcopy(description[key]) for key in description.keys() - {"custom_text", "preprocess_cfg"}}
    if not custom_text:
        build = open_clip.CLIP
    else:
        build = open_clip.CoCa if "multimodal_cfg" in arguments else open_clip.CustomTextCLIP
    try:
        model: nn.Module = build(**arguments)
    except (TypeError, ImportError, RuntimeError, AssertionError) as error:
        raise ClipError(f"open_clip cannot build this model dictionary as {build.__name__}: {error}") from error
    return model


def _load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    open_clip = import_open_clip()
    state = {name: tensor for name, tensor in state.items() if name not in _OPENAI_MARKERS}
    state = open_clip.convert.convert_state_dict(model, state)  # layouts of other exporters, as open_clip does
    if not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    load_strictly(model, state, source=source)
