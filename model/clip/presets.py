"""Which CLIP to take: presets by size, and the facts about every open_clip model that help to choose.

A preset is a word for an open_clip name and tag: ``small``, ``base`` and ``large`` are Perception Encoders (PE-Core,
2025), ``clip`` is OpenAI's ViT-B/32 of 2021, the paper's backbone. ``ModelFacts`` is what ``emcl models`` lists, and
``fetch_model`` copies a model into a folder that ``--model FOLDER`` loads without any network:
``open_clip_config.json`` and ``open_clip_model.safetensors``, open_clip's own layout.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from model.clip.compat import import_open_clip
from model.clip.pretrained import ClipError, cached_weights, describe_clip, download_weights
from model.config import ClipConfig, load_mapping
from model.durable import write_atomically

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"

_PE_SOURCE = "Bolya et al. 2025, arXiv:2504.13181"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """``recall_at_1``: zero-shot text to video on MSR-VTT, in percent, as ``source`` reports it, not measured here."""

    architecture: str
    tag: str
    licence: str
    megabytes: int
    recall_at_1: float
    source: str

    def line(self, name: str) -> str:
        """One line for people who are about to download it."""
        return (
            f"model {name}: {self.architecture} ({self.tag}), about {self.megabytes:,} MB to download once, licence "
            f"{self.licence}; another: --model small, base, large, clip (`emcl models`)"
        )


PRESETS = {
    "small": Preset(
        architecture="PE-Core-S-16-384",
        tag="meta",
        licence="Apache-2.0",
        megabytes=349,
        recall_at_1=39.3,
        source=_PE_SOURCE,
    ),
    "base": Preset(
        architecture="PE-Core-B-16",
        tag="meta",
        licence="Apache-2.0",
        megabytes=1791,
        recall_at_1=47.6,
        source=_PE_SOURCE,
    ),
    "large": Preset(
        architecture="PE-Core-L-14-336",
        tag="meta",
        licence="Apache-2.0",
        megabytes=2685,
        recall_at_1=50.3,
        source=_PE_SOURCE,
    ),
    "clip": Preset(
        architecture="ViT-B-32-quickgelu",
        tag="openai",
        licence="MIT",
        megabytes=605,
        recall_at_1=31.2,
        source="Portillo-Quintero et al. 2021, arXiv:2102.12443",
    ),
}
"""Megabytes are four bytes for each weight."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """One model of the list. ``licence``, ``recall_at_1`` and ``source`` are None where we do not know them."""

    preset: str | None
    architecture: str
    tag: str
    image_size: tuple[int, int]
    resize_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context_length: int
    licence: str | None
    recall_at_1: float | None
    source: str | None
    cached: bool


def default_preset(*, has_cuda: bool) -> str:
    """The preset of a new store: a CPU encodes ``small`` in reasonable time, a GPU ``base``."""
    return "base" if has_cuda else "small"


def resolve(model: str | None, pretrained: str | None) -> tuple[str | None, str | None]:
    """Name and tag of a preset; everything else is returned unchanged.

    Raises ``ClipError`` for a preset with a ``pretrained`` of its own, which would be other weights.
    """
    if model not in PRESETS:
        return model, pretrained
    preset = PRESETS[model]
    if pretrained not in (None, preset.tag):
        raise ClipError(
            f"--model {model} is {preset.architecture} with the weights {preset.tag!r}; for others name the "
            f"architecture: --model {preset.architecture} --pretrained {pretrained}"
        )
    return preset.architecture, preset.tag


def list_models() -> list[ModelFacts]:
    """All pretrained models of open_clip, the presets first."""
    presets = [(preset.architecture, preset.tag) for preset in PRESETS.values()]
    table = [entry for entry in import_open_clip().list_pretrained() if tuple(entry) not in presets]
    return [facts_of(architecture, tag) for architecture, tag in [*presets, *table]]


def facts_of(architecture: str, tag: str) -> ModelFacts:
    """The facts about one model, without loading it. Raises ``ClipError`` for an unknown one."""
    description = describe_clip(ClipConfig(architecture=architecture, pretrained=tag))
    name, preset = next(
        ((name, p) for name, p in PRESETS.items() if (p.architecture, p.tag) == (architecture, tag)), (None, None)
    )
    size, cfg = description["vision_cfg"].get("image_size", 224), description["preprocess_cfg"]
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return ModelFacts(
        preset=name,
        architecture=architecture,
        tag=tag,
        image_size=(height, width),
        resize_mode=cfg.get("resize_mode", "shortest"),
        interpolation=cfg.get("interpolation", "bicubic"),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        context_length=description["text_cfg"].get("context_length", 77),
        licence=preset.licence if preset else None,
        recall_at_1=preset.recall_at_1 if preset else None,
        source=preset.source if preset else None,
        cached=cached_weights(architecture, tag) is not None,
    )


def fetch_model(name: str, tag: str | None, folder: Path) -> ModelFacts:
    """Copy a model into ``folder``, fetching its weights where they are not cached; the facts about it.

    Raises ``ClipError`` for an unknown name, a missing tag, or weights that are not one safetensors file;
    ``DownloadError`` without network.
    """
    architecture, found = resolve(name, tag)
    if architecture is None or found is None:
        tags = ", ".join(import_open_clip().list_pretrained_tags_by_model(name)) or "none"
        raise ClipError(f"model {name!r} needs a tag: --pretrained TAG (its tags: {tags}); or take a preset")
    facts = facts_of(architecture, found)
    weights = Path(download_weights(architecture, found))
    if weights.suffix != ".safetensors":
        raise ClipError(f"the weights of {architecture} ({found}) are {weights.name}, not safetensors; copy that file")
    description = describe_clip(ClipConfig(architecture=architecture, pretrained=found))
    config = {
        "model_cfg": {key: value for key, value in description.items() if key != "preprocess_cfg"},
        "preprocess_cfg": description["preprocess_cfg"],
        "facts": {key: value for key, value in asdict(facts).items() if key != "cached"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS_FILE}.part"
    shutil.copyfile(weights, partial)
    partial.replace(folder / WEIGHTS_FILE)
    write_atomically(folder / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    return facts


def is_model_folder(spec: str) -> bool:
    """Whether ``spec`` is a folder that ``fetch_model`` (or open_clip) wrote."""
    return (Path(spec) / CONFIG_FILE).is_file()


def config_of_folder(folder: Path) -> ClipConfig:
    """The towers in a folder that ``fetch_model`` wrote. Raises ``ClipError`` for one that lacks something."""
    try:
        config = load_mapping(folder / CONFIG_FILE)
        custom = {**config["model_cfg"], "preprocess_cfg": config.get("preprocess_cfg", {})}
    except (ValueError, KeyError) as error:
        raise ClipError(f"{folder / CONFIG_FILE} is not a model's configuration: {error}; fetch it again") from error
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ClipError(f"{folder} has no {WEIGHTS_FILE}; make it with `emcl models fetch NAME --to {folder}`")
    return ClipConfig(custom=custom, pretrained=str(weights))
