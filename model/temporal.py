"""Temporal aggregation: frame embeddings (B, F, D) in, frame features (B, F, D) out, raw scale.

``mean`` leaves frames as they are (they are averaged by the pooling), ``transformer`` is CLIP4Clip's and EMCL-Net's
``seqTransf``: ``y = x + blocks(x + positions)``, blocks and positions started from CLIP's text tower, ``lstm`` is
CLIP4Clip's ``seqLSTM``: ``y = x + lstm(x)``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.clip.compat import import_open_clip
from model.config import TemporalConfig

if TYPE_CHECKING:
    from model.clip.towers import ClipTowers

REFERENCE_EPSILON = 1e-12  # the reference's temporal LayerNorm; CLIP's own is 1e-5
MASKED = -1e6  # the reference's additive mask; finite, so that no row of attention can become NaN


class MeanTemporal(nn.Module):
    """No exchange between frames."""

    def forward(self, frames_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        """Return the frames unchanged."""
        return frames_BFD


class LSTMTemporal(nn.Module):
    """A one-layer LSTM of width D, added to the frames. Padding never enters it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, frames_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        """Add the LSTM's outputs to the frames; real frames must come first in each row."""
        lengths = mask_BF.sum(dim=1).cpu()
        packed = pack_padded_sequence(frames_BFD, lengths, batch_first=True, enforce_sorted=False)
        outputs_BFD, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=frames_BFD.shape[1])
        return frames_BFD + outputs_BFD


class TransformerTemporal(nn.Module):
    """``y = x + blocks(x + positions)``; the residual adds the frames without positions, as the reference does."""

    def __init__(self, dim: int, heads: int, config: TemporalConfig, *, quick_gelu: bool) -> None:
        super().__init__()
        transformer = import_open_clip().transformer
        self.heads = heads
        self.positions = nn.Embedding(config.max_positions, dim)
        self.blocks = transformer.Transformer(
            width=dim,
            layers=config.layers,
            heads=heads,
            act_layer=transformer.QuickGELU if quick_gelu else nn.GELU,
            norm_layer=partial(transformer.LayerNorm, eps=REFERENCE_EPSILON),
        )

    def forward(self, frames_BFD: Tensor, mask_BF: Tensor) -> Tensor:
        """Attend between real frames. Raises ``ValueError`` for more frames than positions."""
        frames = frames_BFD.shape[1]
        if frames > self.positions.num_embeddings:
            raise ValueError(
                f"the temporal transformer has {self.positions.num_embeddings} frame positions, got {frames} frames; "
                "lower sampling.max_frames"
            )
        additive_BF = (~mask_BF).to(frames_BFD) * MASKED
        mask = additive_BF[:, None, None].expand(-1, self.heads, frames, -1).reshape(-1, frames, frames)
        positions_FD = self.positions.weight[:frames]
        mixed_BFD: Tensor = self.blocks(frames_BFD + positions_FD, attn_mask=mask)
        return frames_BFD + mixed_BFD

    @torch.no_grad()
    def copy_from_text_tower(self, clip: ClipTowers) -> None:
        """Start from CLIP's first text blocks and text positions (reference §2.2)."""
        for block, source in zip(self.blocks.resblocks, clip.text_blocks, strict=False):
            block.load_state_dict(source.state_dict())
        assert clip.text_positions is not None
        count = min(len(clip.text_positions), self.positions.num_embeddings)
        self.positions.weight[:count] = clip.text_positions[:count]


def build_temporal(config: TemporalConfig, clip: ClipTowers) -> nn.Module:
    """Build the aggregation for a CLIP model, started from its text tower where the kind says so.

    Raises ``ValueError`` if ``transformer`` is asked for and the text tower cannot start it.
    """
    if config.kind == "mean":
        return MeanTemporal()
    if config.kind == "lstm":
        return LSTMTemporal(clip.embed_dim)
    blocks = clip.text_blocks
    width = None if clip.text_positions is None else clip.text_positions.shape[1]
    if width != clip.embed_dim or len(blocks) < config.layers:
        raise ValueError(
            f"temporal.kind 'transformer' starts from CLIP's text blocks and needs {config.layers} of width "
            f"{clip.embed_dim}; this model has {len(blocks)} of width {width}; choose temporal.kind 'mean' or 'lstm', "
            "fewer temporal.layers, or another CLIP model"
        )
    source: Any = blocks[0]
    quick_gelu = type(source.mlp.gelu).__name__ == "QuickGELU"
    temporal = TransformerTemporal(clip.embed_dim, source.attn.num_heads, config, quick_gelu=quick_gelu)
    temporal.copy_from_text_tower(clip)
    return temporal
