"""Import EMCL-Net, CLIP4Clip and CLIP files as checkpoints of this program.

In: a file of the authors' EMCL-Net, of CLIP4Clip (meanP, seqLSTM, seqTransf), one of OpenAI's CLIP archives, or a CLIP
state dict in OpenAI's names. Out: NAME.safetensors and NAME.json, in float32, and an ``ImportReport``: where every name
went, and which settings were chosen. Tower sizes come from the tensors' shapes, as in the released code of EMCL-Net and
CLIP4Clip (``tvr/models/modeling.py``; ResNet towers as in ``open_clip.model.build_model_from_openai_state_dict``), the
aggregation of frames from their names. Nothing is dropped silently: a tensor without a place here, or a parameter here
without a tensor, is an error unless it is known to be unused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.checkpoint import fingerprint, save_checkpoint
from model.clip.compat import import_open_clip
from model.clip.towers import build_clip
from model.clip.weights import WeightsError, load_strictly, read_weights
from model.config import (
    ClipConfig,
    EMCLConfig,
    ModelConfig,
    PoolingConfig,
    SamplingConfig,
    TemporalConfig,
    TokenizerConfig,
)
from model.net import EMCLNet
from model.options import ImportOptions

Kind = Literal["emcl-net", "clip4clip", "clip"]
CLIP_VOCABULARY = 49408
_TOWERS, _BLOCKS, _POSITIONS, _LSTM = "clip.", "transformerClip.", "frame_position_embeddings.", "lstm_visual."
_CROSS = ("cross.", "similarity_dense.")  # CLIP4Clip's tightTransf, which it builds beside the other heads as well
_NAMES = {
    _TOWERS: "clip.model.",
    _BLOCKS: "temporal.blocks.",
    _POSITIONS: "temporal.positions.",
    _LSTM: "temporal.lstm.",
}
# Scalars beside the weights in OpenAI's archives.
_OPENAI_MARKERS = ("input_resolution", "context_length", "vocab_size")
_HARMLESS = (*_OPENAI_MARKERS, "attn_mask")  # constants that the architecture says already
_EMCL_STATE = "emcl.state"

HEAD_WIDTH = 64  # channels per attention head of every CLIP that OpenAI released; not derivable from any tensor's shape
_RESNET_STRIDE = 32  # pixels of the image per position of a ResNet's last map
_TEXT = ("text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight")
_VIT = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
_RESNET = ("visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was written, and what became of every name: ``taken`` tensors, ``unused`` ones known to be of no use,
    ``unmatched`` names of the source and ``unfilled`` parameters of ours (both empty unless they were allowed).
    """

    kind: Kind
    path: Path
    fingerprint: str
    config: ModelConfig
    taken: int
    unused: list[str]
    unmatched: list[str]
    unfilled: list[str]
    notes: list[str]

    def text(self) -> str:
        """The readable report, a few lines."""
        clip, emcl, pooling = self.config.clip.custom or {}, self.config.emcl, self.config.pooling
        vision, words = clip["vision_cfg"], clip["text_cfg"]
        lines = [
            f"{self.path}: {self.kind}, fingerprint {self.fingerprint[:12]}",
            f"  images   {vision['layers']} layers, width {vision['width']}, patch {vision['patch_size']}, "
            f"{vision['image_size']} pixels, heads of {vision['head_width']}",
            f"  text     {words['layers']} layers, width {words['width']}, {words['heads']} heads, "
            f"{words['context_length']} positions; {'quick-gelu' if clip['quick_gelu'] else 'gelu'} in both towers",
            f"  frames   {_temporal_text(self.config.temporal)}",
            f"  tensors  {self.taken} taken, {len(self.unused)} known to be of no use here",
            "settings that no such file holds (see docs/importing.md):",
            f"  EMCL     {emcl.mode} mode, K {emcl.num_bases}, {emcl.iterations} iterations, sigma {emcl.sigma:g}, "
            f"beta {emcl.beta:g}; its state is new, from seed {emcl.seed}",
            f"  pooling  temperature {pooling.temperature:g}, padding masked {pooling.mask} the softmax",
            f"  input    {self.config.tokenizer.max_words} words, {self.config.sampling.max_frames} frames at "
            f"{self.config.sampling.sample_fps:g} per second",
            *(f"note: {note}" for note in self.notes),
            *(f"left out: {name}" for name in self.unmatched),
            *(f"not in the file, kept at its start: {name}" for name in self.unfilled),
        ]
        return "\n".join(lines)


def _temporal_text(temporal: TemporalConfig) -> str:
    if temporal.kind == "transformer":
        return f"transformer of {temporal.layers} layers, {temporal.max_positions} positions"
    return "LSTM" if temporal.kind == "lstm" else "averaged"


class ImportingError(WeightsError):
    """The file cannot be imported, or something in it would be lost; the message says what."""


def import_checkpoint(source: Path, output: Path, options: ImportOptions | None = None) -> ImportReport:
    """Convert ``source`` and write ``output`` (NAME.safetensors, or NAME) with its NAME.json.

    Raises ``FileNotFoundError``, ``WeightsError`` for a file that is damaged or would need code to be run,
    ``ImportingError`` for one that is of no known layout, whose kind is unclear, or with names left over, and
    ``ValueError`` for options that do not fit the model.
    """
    options = options or ImportOptions()
    stem = output.name.removesuffix(".safetensors").removesuffix(".json")
    if source.resolve() in {output.with_name(stem + suffix).resolve() for suffix in (".safetensors", ".json")}:
        raise ImportingError(f"the output {output} would overwrite the source; give another name with --output")
    state = _without_common_prefix(read_weights(source))
    kind = _kind(state, options.kind, source)
    config, notes = _configure(state, kind, options, source)
    places, unused, unmatched = _places(state, kind, config.temporal)
    with torch.random.fork_rng(devices=[]):  # what the file lacks starts the same in every import
        torch.manual_seed(0)
        net = _fill(config, {ours: state[theirs] for ours, theirs in places.items()}, source)
    parameters = net.state_dict().keys()
    unmatched = sorted([*unmatched, *(theirs for ours, theirs in places.items() if ours not in parameters)])
    unfilled = sorted(parameters - places.keys() - {_EMCL_STATE})
    if (unmatched or unfilled) and not options.allow_unmatched:
        raise ImportingError(_unmatched_message(source, kind, unmatched, unfilled))
    provenance = {"file": source.name, "sha256": _sha256(source), "kind": kind, "unused": unused}
    facts = {"imported": {**provenance, "unmatched": unmatched, "unfilled": unfilled}}
    path = save_checkpoint(net, output, metadata=facts)
    return ImportReport(
        kind=kind,
        path=path,
        fingerprint=fingerprint(net),
        config=config,
        taken=len(state) - len(unused) - len(unmatched),
        unused=unused,
        unmatched=unmatched,
        unfilled=unfilled,
        notes=notes,
    )


def _without_common_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off ``module.`` and ``model.``, however often wrappers put them before every name."""
    for prefix in ("module.", "model.") * 2:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _kind(state: Mapping[str, Tensor], asked: Literal["auto"] | Kind, source: Path) -> Kind:
    if _EMCL_STATE in state:
        raise ImportingError(f"{source} is a checkpoint of this program already; use it as it is")
    plain = not any(name.startswith(_TOWERS) for name in state)
    if plain != (asked == "clip") and asked != "auto":
        raise ImportingError(
            f"{source} is not of kind {asked}: its names {'do not ' if plain else ''}start with {_TOWERS!r}; "
            f"leave --kind out, or give {'clip' if plain else 'emcl-net or clip4clip'}"
        )
    if asked != "auto":
        return asked
    if plain:
        return "clip"
    if any(name.startswith(_CROSS) for name in state):
        return "clip4clip"
    raise ImportingError(
        f"{source} may be of EMCL-Net or of CLIP4Clip: both write the same names. They differ in the settings that go "
        "with the weights; give --kind emcl-net or --kind clip4clip"
    )


def _configure(
    state: Mapping[str, Tensor], kind: Kind, options: ImportOptions, source: Path
) -> tuple[ModelConfig, list[str]]:
    towers = dict(state) if kind == "clip" else _after(state, _TOWERS)
    if kind != "clip" and "visual.conv2.weight" in towers:
        raise ImportingError(
            f"{source} was trained with CLIP4Clip's 3d patches, which span frames; only 2d can be used"
        )
    try:
        architecture = infer_architecture(
            towers,
            quick_gelu=options.activation == "quick-gelu",
            vision_head_width=options.vision_head_width,
            text_head_width=options.text_head_width,
        )
    except WeightsError as error:
        found = ", ".join(sorted(state)[:4])
        raise ImportingError(
            f"{source} is none of EMCL-Net, CLIP4Clip, CLIP: {error}. It holds {len(state)} tensors: {found}, …"
        ) from error
    words = architecture["text_cfg"]
    if options.max_words > words["context_length"]:
        raise ImportingError(
            f"--max-words is {options.max_words}, but the text tower has {words['context_length']} positions; lower it"
        )
    temporal = _temporal(state, kind)
    if temporal.kind == "transformer" and options.max_frames > temporal.max_positions:
        raise ImportingError(
            f"--max-frames is {options.max_frames}, but there are {temporal.max_positions} frame positions; lower it"
        )
    # The released values and rules for EMCL-Net, so that its numbers come out; ours for what never saw EMCL.
    released = options.emcl == "reference" or (options.emcl == "auto" and kind == "emcl-net")
    config = ModelConfig(
        name=kind,
        clip=ClipConfig(architecture="imported", custom=architecture),
        tokenizer=TokenizerConfig(max_words=options.max_words),
        temporal=temporal,
        pooling=PoolingConfig(mask="after" if released else "before"),
        frame_average="unit-mean" if kind == "clip4clip" else "mean",
        emcl=EMCLConfig.reference() if released else EMCLConfig(),
        sampling=SamplingConfig(max_frames=options.max_frames),
    )
    return config, _notes(state, kind, options, words["vocab_size"])


def _notes(state: Mapping[str, Tensor], kind: Kind, options: ImportOptions, vocabulary: int) -> list[str]:
    notes = []
    if kind == "clip" and options.activation == "quick-gelu" and not any(name in state for name in _OPENAI_MARKERS):
        notes.append("no tensor determines the activation; quick-gelu is OpenAI's, LAION's need --activation gelu")
    if vocabulary != CLIP_VOCABULARY:
        notes.append(f"its vocabulary has {vocabulary} entries, CLIP's has {CLIP_VOCABULARY}: is the tokenizer CLIP's?")
    return notes


def _temporal(state: Mapping[str, Tensor], kind: Kind) -> TemporalConfig:
    blocks = {name.split(".")[2] for name in state if name.startswith(f"{_BLOCKS}resblocks.")}
    if kind != "clip" and blocks:
        positions = state.get(f"{_POSITIONS}weight")
        rows = TemporalConfig().max_positions if positions is None else len(positions)
        return TemporalConfig(kind="transformer", layers=len(blocks), max_positions=rows)
    recurrent = kind != "clip" and any(name.startswith(_LSTM) for name in state)
    return TemporalConfig(kind="lstm" if recurrent else "mean")


def _places(
    state: Mapping[str, Tensor], kind: Kind, temporal: TemporalConfig
) -> tuple[dict[str, str], list[str], list[str]]:
    """Return our name to the source's, the source's names that are known to be of no use, and those of no place."""
    places, unused, unmatched = {}, [], []
    for name in state:
        prefix = next((prefix for prefix in _NAMES if name.startswith(prefix)), None)
        if _is_harmless(name, temporal):
            unused.append(name)
        elif kind == "clip":
            places[_NAMES[_TOWERS] + name] = name
        elif prefix is not None:
            places[_NAMES[prefix] + name.removeprefix(prefix)] = name
        else:
            unmatched.append(name)
    return places, sorted(unused), unmatched


def _is_harmless(name: str, temporal: TemporalConfig) -> bool:
    """Whether the released code computes no feature with this tensor either."""
    if name.removeprefix(_TOWERS) in _HARMLESS or name.endswith("position_ids"):
        return True
    if temporal.kind == "lstm" and name.startswith(_POSITIONS):  # built for seqLSTM as well, never read
        return True
    # Beside a temporal head these are left over; alone they are what ranked (tightTransf), and losing them matters.
    return temporal.kind != "mean" and name.startswith(_CROSS)


def _fill(config: ModelConfig, named: Mapping[str, Tensor], source: Path) -> EMCLNet:
    """Build the net and load what fits; what ``named`` lacks keeps its start."""
    clip = build_clip(config.clip)
    _load(clip.model, _after(named, _NAMES[_TOWERS]), source)
    net = EMCLNet(config, clip)  # after the towers are loaded: a temporal part that the file lacks starts from them
    _load(net, named, source)
    return net.eval()


def _load(module: nn.Module, named: Mapping[str, Tensor], source: Path) -> None:
    start = module.state_dict()
    state = {name: named.get(name, tensor) for name, tensor in start.items()}
    if other := [name for name in state if state[name].is_floating_point() != start[name].is_floating_point()]:
        raise ImportingError(f"{source} holds {other[0]} as {state[other[0]].dtype}: quantised weights are not read")
    load_strictly(module, state, source=str(source))


def _after(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _unmatched_message(source: Path, kind: Kind, unmatched: list[str], unfilled: list[str]) -> str:
    parts = [f"{source} does not match a model of kind {kind} wholly"]
    if unmatched:
        parts.append(f"{len(unmatched)} of its tensors have no place here: {', '.join(unmatched)}")
    if unfilled:
        parts.append(f"{len(unfilled)} parameters here are not in it: {', '.join(unfilled)}")
    if any(name.startswith(_CROSS) for name in unmatched):
        parts.append("cross.* without a temporal head is CLIP4Clip's tightTransf, whose ranking needs them")
    return "; ".join([*parts, "--allow-unmatched imports it without them"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def infer_architecture(
    state: Mapping[str, Tensor],
    *,
    quick_gelu: bool,
    vision_head_width: int | None = None,
    text_head_width: int | None = None,
) -> dict[str, Any]:
    """Return the open_clip model dictionary of a state dict.

    Head widths that are not given are those of open_clip's architecture with towers of the same sizes, if it has one
    (ViT-H, ViT-g and ViT-bigG have heads of their own width), else 64. Raises ``WeightsError`` for a state dict that
    lacks the tensors that determine the architecture, or whose sizes contradict each other.
    """
    resnet = _RESNET[0] in state
    if missing := [name for name in (*_TEXT, *(_RESNET if resnet else _VIT)) if name not in state]:
        raise WeightsError(f"no CLIP towers in OpenAI's names: {', '.join(missing)} not found")
    vision = _resnet_sizes(state) if resnet else _vit_sizes(state)
    text = {
        "context_length": _size(state, "positional_embedding", 0),
        "vocab_size": _size(state, "token_embedding.weight", 0),
        "width": _size(state, "ln_final.weight", 0),
        "layers": _layers(state, "transformer.resblocks."),
    }
    embed_dim = _size(state, "text_projection", 1)
    named = named_heads(embed_dim, vision, text)
    vision["head_width"] = vision_head_width or named[0]
    text_head_width = text_head_width or named[1]
    vision_channels = vision["width"] * (_RESNET_STRIDE if resnet else 1)
    towers = (("image", vision_channels, vision["head_width"]), ("text", text["width"], text_head_width))
    for tower, channels, head in towers:
        if channels % head:
            raise WeightsError(
                f"the {tower} tower has {channels} channels, which heads of {head} do not divide; give the width of "
                f"its heads (--{'vision' if tower == 'image' else 'text'}-head-width)"
            )
    text["heads"] = text["width"] // text_head_width
    return {"embed_dim": embed_dim, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": text}


def named_heads(embed_dim: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[int, int]:
    """Return the head widths (vision, text) of open_clip's architecture with these sizes, or CLIP's 64."""
    open_clip = import_open_clip()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        theirs, words = config["vision_cfg"], config["text_cfg"]
        same_image = all(theirs.get(key) == vision[key] for key in ("layers", "width", "patch_size"))
        same_text = all(words.get(key) == text[key] for key in ("layers", "width"))
        if same_image and same_text and config["embed_dim"] == embed_dim:
            return theirs.get("head_width", HEAD_WIDTH), words["width"] // words["heads"]
    return HEAD_WIDTH, HEAD_WIDTH


def _vit_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    patch = _size(state, "visual.conv1.weight", 3)
    grid = _side(_size(state, "visual.positional_embedding", 0) - 1)
    return {
        "image_size": patch * grid,
        "layers": _layers(state, "visual.transformer.resblocks."),
        "width": _size(state, "visual.conv1.weight", 0),
        "patch_size": patch,
    }


def _resnet_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    grid = _side(_size(state, "visual.attnpool.positional_embedding", 0) - 1)
    return {
        "image_size": _RESNET_STRIDE * grid,
        "layers": [_layers(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "width": _size(state, "visual.layer1.0.conv1.weight", 0),
        "patch_size": None,
    }


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    shape = state[name].shape
    if axis >= len(shape):
        raise WeightsError(f"{name} has shape {tuple(shape)}, which is not CLIP's: at least {axis + 1} axes expected")
    return int(shape[axis])


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    """One more than the highest number that follows ``prefix``, so that a lost block counts, and is missed later."""
    numbers = [int(found[1]) for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))]
    if not numbers:
        raise WeightsError(f"no CLIP towers in OpenAI's names: no {prefix}N.… found")
    return max(numbers) + 1


def _side(positions: int) -> int:
    side = isqrt(max(positions, 0))
    if side == 0 or side * side != positions:
        raise WeightsError(f"the image tower has {positions} patch positions, expected a square number")
    return side
