"""CLIP's residual attention blocks with the reference's LayerNorm, and the additive masks that they take."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from model.clip.compat import import_open_clip
from model.temporal import MASKED, REFERENCE_EPSILON

HeadLayout = Literal["fixed", "released"]
"""``released`` repeats the masks of a batch as a whole, once per attention head, where PyTorch wants all heads of the
first item, then of the second: with unequal lengths items are masked by *other* items' masks (CLIP2Video)."""


def quick_gelu_blocks(dim: int, heads: int, layers: int) -> nn.Module:
    """Return ``layers`` pre-norm blocks: x + attention(norm x), then x + mlp(norm x), x·sigmoid(1.702 x) inside."""
    transformer = import_open_clip().transformer
    blocks: nn.Module = transformer.Transformer(
        width=dim,
        layers=layers,
        heads=heads,
        act_layer=transformer.QuickGELU,
        norm_layer=partial(transformer.LayerNorm, eps=REFERENCE_EPSILON),
    )
    return blocks


def run_blocks(blocks: Any, tokens_BND: Tensor, mask_BN: Tensor, heads: int, layout: HeadLayout = "fixed") -> Tensor:
    """Attend between real tokens; ``mask_BN`` is True for them."""
    items, tokens = mask_BN.shape
    additive_BNN = ((~mask_BN.bool()).to(tokens_BND) * MASKED)[:, None].expand(-1, tokens, -1)
    if layout == "fixed":
        mask = additive_BNN[:, None].expand(-1, heads, -1, -1).reshape(items * heads, tokens, tokens)
    else:
        mask = additive_BNN.repeat(heads, 1, 1)
    mixed: Tensor = blocks(tokens_BND, attn_mask=mask)
    return mixed
