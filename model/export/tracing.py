"""The towers as modules that can be traced: plain tensors in and out, and attention spelt out.

PyTorch's own attention takes another path in inference than in training, and its tracer fixes batch and length to those
of the sample. So each one is replaced for the time of an export, weights shared, by the same arithmetic in a few
operations, whose shapes follow the input.

Shape suffixes: B texts, L tokens, N images, C colour, H height, W width, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clip.compat import import_open_clip
from model.clip.towers import ClipTowers


class TextTower(nn.Module):
    """``ClipTowers.encode_text`` behind its checks: ids (B, L) and lengths (B,) to features (B, D)."""

    def __init__(self, towers: ClipTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Embed texts whose first ``lengths_B`` tokens are real."""
        return self.towers.text_features(ids_BL, lengths_B)


class ImageTower(nn.Module):
    """``ClipTowers.encode_image``: normalised pixels (N, C, H, W) to features (N, D)."""

    def __init__(self, towers: ClipTowers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Embed images."""
        return self.towers.image_features(pixels_NCHW)


class _SelfAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes for one input that is query, key and value, batch first."""

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.original = original

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        own = self.original
        packed = F.linear(query, own.in_proj_weight, own.in_proj_bias)
        queries, keys, values = (_heads(part, own.num_heads) for part in torch.split(packed, own.embed_dim, dim=-1))
        logits = queries @ (keys.transpose(-2, -1) * own.head_dim**-0.5)
        if attn_mask is not None:
            logits = logits + attn_mask
        mixed = logits.softmax(dim=-1) @ values
        return F.linear(_joined(mixed, own.embed_dim), own.out_proj.weight, own.out_proj.bias), None


class _AttentionPool(nn.Module):
    """What open_clip's ``AttentionPool2d`` computes: the mean of a map attends to the map."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.original = original

    def forward(self, map_NCHW: Tensor) -> Tensor:
        own = self.original
        rows = map_NCHW.flatten(2).transpose(1, 2)
        rows = torch.cat([rows.mean(dim=1, keepdim=True), rows], dim=1) + own.positional_embedding
        heads = own.num_heads
        query, keys, values = (
            _heads(projection(part), heads)
            for projection, part in ((own.q_proj, rows[:, :1]), (own.k_proj, rows), (own.v_proj, rows))
        )
        weights = (query @ (keys.transpose(-2, -1) * keys.shape[-1] ** -0.5)).softmax(dim=-1)
        pooled: Tensor = own.c_proj(_joined(weights @ values, own.c_proj.in_features))
        return pooled[:, 0]


def _heads(rows_BLD: Tensor, heads: int) -> Tensor:
    """(B, L, D) to (B, heads, L, D / heads). Written so that onnxruntime finds one operation in it."""
    return rows_BLD.reshape(rows_BLD.shape[0], rows_BLD.shape[1], heads, int(rows_BLD.shape[-1]) // heads).transpose(
        1, 2
    )


def _joined(mixed_BHLD: Tensor, width: int) -> Tensor:
    """The opposite of ``_heads``."""
    rows = mixed_BHLD.transpose(1, 2)
    return rows.reshape(rows.shape[0], rows.shape[1], width)


@contextmanager
def traceable(towers: ClipTowers) -> Iterator[None]:
    """Put the attention above in place of PyTorch's while the context lasts."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(towers.modules()):
        for name, child in list(parent.named_children()):
            if (plain := _plain(parent, child)) is not None:
                replaced.append((parent, name, child))
                setattr(parent, name, plain)
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def _plain(parent: nn.Module, child: nn.Module) -> nn.Module | None:
    open_clip = import_open_clip()
    if isinstance(child, open_clip.modified_resnet.AttentionPool2d):
        return _AttentionPool(child)
    is_block = isinstance(parent, open_clip.transformer.ResidualAttentionBlock) and not hasattr(parent, "ln_1_kv")
    if is_block and isinstance(child, nn.MultiheadAttention) and child.batch_first:
        return _SelfAttention(child)
    return None
