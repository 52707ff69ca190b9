"""PyTorch on a CPU with the weights of transformer blocks laid out once as oneDNN multiplies them.

Without this, oneDNN lays out a weight matrix again in every call, which for one short text costs as much as multiplying
(measured with ViT-B/32's text tower on one core with AVX512-BF16, 8 and 32 tokens: 21.6 and 40.7 ms to 12.3 and 28.1 ms
in fp32, 13.2 and 20.8 to 6.9 and 14.5 ms in bf16; 600 tokens: 10 to 15 % less). Only the order of sums
differs.

Shape suffixes: B sequences, L tokens, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clip.compat import import_open_clip
from model.clip.towers import ClipTowers


def can_pack(towers: ClipTowers) -> bool:
    """Whether there is anything to gain: blocks of open_clip, on a CPU, with oneDNN that has the two operations."""
    operations = torch.ops.mkldnn
    return (
        torch._C._has_mkldnn
        and hasattr(operations, "_reorder_linear_weight")
        and hasattr(operations, "_linear_pointwise")
        and towers.logit_scale.device.type == "cpu"
        and any(_is_packable(block) for block in towers.modules())
    )


@torch.no_grad()
def pack(towers: ClipTowers) -> None:
    """Lay out the weights of every block; the ordinary ones give their memory back, as with ``ClipTowers.run_by``."""
    towers.keep_digests()
    text_blocks = {id(block) for block in towers.text_blocks}
    for block in list(towers.modules()):
        if _is_packable(block):
            packed = _PackedTextLinear if id(block) in text_blocks else _PackedLinear
            parts: Any = block
            for linear in (parts.mlp.c_fc, parts.mlp.c_proj):
                _replace(linear, packed(linear.weight, linear.bias))
            _replace(parts.attn, _PackedAttention(parts.attn, packed))


def _is_packable(block: nn.Module) -> bool:
    if not isinstance(block, import_open_clip().transformer.ResidualAttentionBlock) or hasattr(block, "ln_1_kv"):
        return False
    attention: Any = block.attn
    return bool(attention.batch_first and attention.in_proj_weight is not None) and (
        attention.in_proj_weight.dtype in _dtypes()
    )


def _dtypes() -> tuple[torch.dtype, ...]:
    """What oneDNN multiplies on this processor. Not fp16: PyTorch's CPU has no fast path for it to prepare."""
    operations = torch.ops.mkldnn
    has_bf16 = hasattr(operations, "_is_mkldnn_bf16_supported") and operations._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bf16 else (torch.float32,)


def _replace(module: Any, computing: Any) -> None:
    """Let another object compute a module. The module keeps its place and its names, which fingerprints go by."""
    module.forward = computing
    module.to("meta")


class _PackedLinear:
    """``nn.Linear`` of rows (B, L, D)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self._bias = None if bias is None else bias.detach().clone()

    def __call__(self, rows_BLD: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows_BLD, self._packed, self._bias, "none", [], "")
        return result


class _PackedTextLinear(_PackedLinear):
    """One that meets few numbers of rows, though texts of all lengths come in batches of all sizes.

    oneDNN compiles a kernel for each number of rows, 2 to 5 ms and about a MiB for every matrix, and keeps a thousand
    of them: a service held 250 MiB more after a minute of searches. One text alone meets few lengths already
    (``model.clip.tokenizer``), and what an answer waits for longest should not be copied.
    """

    def __call__(self, rows_BLD: Tensor) -> Tensor:
        texts, length, _ = rows_BLD.shape
        count = texts * length
        more = padded_rows(count) - count if texts > 1 else 0
        if more == 0:
            return super().__call__(rows_BLD)
        padded = super().__call__(F.pad(rows_BLD.flatten(0, 1), (0, 0, 0, more)))
        return padded[:count].view(texts, length, -1)


def padded_rows(count: int) -> int:
    """How many rows are multiplied for ``count``: at most 3 more, or an eighth more."""
    step = max(4, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


class _PackedAttention:
    """``nn.MultiheadAttention`` of one input that is query, key and value, batch first, without weights returned."""

    def __init__(self, original: nn.MultiheadAttention, packed: type[_PackedLinear]) -> None:
        self._heads = original.num_heads
        self._inward = packed(original.in_proj_weight, original.in_proj_bias)
        self._outward = packed(original.out_proj.weight, original.out_proj.bias)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        packed = self._inward(query)
        queries, keys, values = (
            torch.unflatten(part, -1, (self._heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return self._outward(mixed.transpose(1, 2).flatten(-2)), None
