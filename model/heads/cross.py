"""``cross``: CLIP4Clip's tightTransf. A transformer reads the text and the frames of one pair; T·V of them score a set.

    [text; frames] + positions → blocks → LayerNorm of the first token → linear → x·sigmoid(1.702 x) → linear → score

There is no logit scale, and no temporal part before it. Where EMCL acts is a choice: on all real frames, then the
texts, before the transformer.

Shape suffixes: T texts, V videos, F frames, D channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.heads.base import Head, HeadKind
from model.heads.blocks import quick_gelu_blocks, run_blocks
from model.heads.frames import FramesBatch
from model.temporal import REFERENCE_EPSILON

_PAIRS_AT_ONCE = 1024


class CrossHead(Head[FramesBatch]):
    """The cross encoder. ``context`` is the number of positions: 1 + F at most. ``dropout`` is 0.1 in training."""

    kind: ClassVar[HeadKind] = "cross"

    def __init__(self, dim: int, *, heads: int, layers: int = 4, context: int = 77, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Embedding(context, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = quick_gelu_blocks(dim, heads, layers)
        self.norm = nn.LayerNorm(dim, eps=REFERENCE_EPSILON)
        self.dense = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1)
        for weight in (self.positions.weight, self.dense.weight, self.score.weight):
            nn.init.normal_(weight, std=0.02)
        for linear in (self.dense, self.score):
            nn.init.zeros_(linear.bias)

    def rows(self, batch: FramesBatch) -> Tensor:
        """Return (N, D): all real frames video by video, then the texts."""
        return torch.cat([batch.features_VFD[batch.mask_VF.bool()], batch.text_TD])

    def replace(self, batch: FramesBatch, rows: Tensor) -> FramesBatch:
        """Put corrected rows, as they are, back into their places."""
        mask = batch.mask_VF.bool()
        frames = int(mask.sum())
        features = torch.zeros_like(batch.features_VFD).masked_scatter(mask[..., None], rows[:frames])
        return replace(batch, features_VFD=features, text_TD=rows[frames:])

    def similarity(self, batch: FramesBatch) -> Tensor:
        """Score every pair: (T, V). Raises ``ValueError`` for more frames than positions."""
        frames = batch.mask_VF.shape[1]
        if 1 + frames > self.positions.num_embeddings:
            raise ValueError(
                f"the cross encoder has {self.positions.num_embeddings} positions, got {1 + frames} tokens; "
                "use fewer frames"
            )
        step = max(1, _PAIRS_AT_ONCE // max(1, batch.videos))
        blocks = [self._block(batch, batch.text_TD[start : start + step]) for start in range(0, batch.texts, step)]
        return torch.cat(blocks)

    def _block(self, batch: FramesBatch, text_tD: Tensor) -> Tensor:
        texts, (videos, frames, dim) = len(text_tD), batch.features_VFD.shape
        words = text_tD[:, None, None].expand(-1, videos, -1, -1)
        tokens = torch.cat([words, batch.features_VFD[None].expand(texts, -1, -1, -1)], dim=2)
        mask = nn.functional.pad(batch.mask_VF.bool(), (1, 0), value=True)[None].expand(texts, -1, -1)
        tokens_PND = tokens.reshape(texts * videos, 1 + frames, dim) + self.positions.weight[: 1 + frames]
        mixed_PND = run_blocks(self.blocks, self.dropout(tokens_PND), mask.reshape(texts * videos, -1), self.heads)
        first_PD = self.dense(self.norm(mixed_PND[:, 0]))
        activated_PD = first_PD * torch.sigmoid(1.702 * first_PD)
        scores_TV: Tensor = self.score(activated_PD).view(texts, videos)
        return scores_TV
