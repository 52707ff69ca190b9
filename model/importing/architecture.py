"""The architecture of a CLIP model, read from the shapes of its tensors.

In: a state dict in OpenAI's names (``visual.conv1.weight``, ``transformer.resblocks.0.…``). Out: the open_clip model
dictionary that its tensors fit. As in the released code of EMCL-Net and CLIP4Clip (``tvr/models/modeling.py``), which
build their towers the same way; ResNet towers as ``open_clip.model.build_model_from_openai_state_dict``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from model.clip.compat import import_open_clip
from model.clip.weights import WeightsError

HEAD_WIDTH = 64  # channels per attention head of every CLIP that OpenAI released; not derivable from any tensor's shape
_RESNET_STRIDE = 32  # pixels of the image per position of a ResNet's last map
_TEXT = ("text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight")
_VIT = ("visual.conv1.weight", "visual.positional_embedding", "visual.proj")
_RESNET = ("visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")


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
