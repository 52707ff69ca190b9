"""``mixture``: CLIP2Video. The pooled similarity of one branch, which EMCL corrects, mixed with another's.

    S = (1 - a) · S₁ + a · S₂        S₁ pooled vectors through the temporal difference block (TDB), corrected by EMCL
                                     S₂ the temporal alignment block (TAB), left alone

No code that trains it was released, so it takes EMCL at inference. As released, corrected rows are not normalised
again (``renormalise=False``), and attention masks are laid out wrong (``model.heads.blocks``).

Shape suffixes: T texts, V videos, B batch, F frames, L words, C centres, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.emcl.pooling import unit_mean_pool
from model.heads.base import Head, HeadKind
from model.heads.blocks import HeadLayout, quick_gelu_blocks, run_blocks
from model.heads.pooled import PooledBatch, PooledHead


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureBatch:
    """Unit vectors of the branch that EMCL corrects, and the other's similarities (T, V), which stay."""

    pooled: PooledBatch
    second_TV: Tensor

    @property
    def texts(self) -> int:
        """T."""
        return self.pooled.texts

    @property
    def videos(self) -> int:
        """V."""
        return self.pooled.videos

    def take(self, texts: Tensor, videos: Tensor) -> Self:
        """Return these texts and videos."""
        return replace(self, pooled=self.pooled.take(texts, videos), second_TV=self.second_TV[texts][:, videos])


class MixtureHead(Head[MixtureBatch]):
    """``share`` is the weight of the second similarity, 0.5 as released."""

    kind: ClassVar[HeadKind] = "mixture"

    def __init__(self, *, share: float = 0.5, renormalise: bool = True) -> None:
        super().__init__()
        self.share = share
        self.first = PooledHead(renormalise=renormalise)

    def rows(self, batch: MixtureBatch) -> Tensor:
        """Return (V + T, D): videos, then texts."""
        return self.first.rows(batch.pooled)

    def replace(self, batch: MixtureBatch, rows: Tensor) -> MixtureBatch:
        """Put corrected rows in the place of the vectors."""
        return replace(batch, pooled=self.first.replace(batch.pooled, rows))

    def similarity(self, batch: MixtureBatch) -> Tensor:
        """Return the mixture of both similarities."""
        return (1 - self.share) * self.first.similarity(batch.pooled) + self.share * batch.second_TV


class Clip2Video(nn.Module):
    """CLIP2Video's layers after CLIP: raw frames, end-of-text features and words in, a ``MixtureBatch`` out."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        layers: int = 4,
        centres: int = 5,
        positions: int = 77,
        layout: HeadLayout = "fixed",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.layout: HeadLayout = layout
        self.positions = nn.Embedding(positions, dim)
        self.types = nn.Embedding(2, dim)  # row 1: frames, row 0: differences
        self.difference_block = quick_gelu_blocks(dim, heads, 1)
        self.difference_norm = nn.LayerNorm(dim)
        self.temporal = quick_gelu_blocks(dim, heads, layers)
        self.coarse_block = quick_gelu_blocks(dim, heads, 1)
        self.centre_weight_CD = nn.Parameter(torch.randn(centres, dim) * dim**-0.5)
        self.centre_CD = nn.Parameter(torch.randn(centres, dim) * dim**-0.5)

    def forward(
        self, frames_VFD: Tensor, mask_VF: Tensor, text_TD: Tensor, words_TLD: Tensor, word_mask_TL: Tensor
    ) -> MixtureBatch:
        """Compute both branches. The first word (the start token) takes no part in the alignment."""
        video_VD, video_tab_VD = self.videos(frames_VFD, mask_VF)
        word_mask = word_mask_TL.bool().clone()
        word_mask[:, 0] = False
        text_tab_TD = self.aligned(words_TLD, word_mask)
        pooled = PooledBatch(video_VD=video_VD, text_TD=F.normalize(text_TD, dim=-1))
        return MixtureBatch(pooled=pooled, second_TV=text_tab_TD @ video_tab_VD.T)

    def videos(self, frames_VFD: Tensor, mask_VF: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors (V, D) of the difference branch and of the alignment branch."""
        mask_VF = mask_VF.bool()
        fine_VFD = self._mixed(self.temporal, frames_VFD, mask_VF)
        coarse_VfD, coarse_mask = frames_VFD[:, ::2], mask_VF[:, ::2]
        coarse_VfD = self._mixed(self.coarse_block, coarse_VfD, coarse_mask)
        aligned_VD = self.aligned(torch.cat([frames_VFD, coarse_VfD], dim=1), torch.cat([mask_VF, coarse_mask], dim=1))
        return unit_mean_pool(fine_VFD, mask_VF), aligned_VD

    def _mixed(self, blocks: nn.Module, frames_VFD: Tensor, mask_VF: Tensor) -> Tensor:
        """Attend between frames and differences; return the frames' outputs, the frames added."""
        tokens, mask = self.differences(frames_VFD, mask_VF)
        tokens = tokens + self.positions.weight[: frames_VFD.shape[1]].repeat_interleave(2, dim=0)[: tokens.shape[1]]
        types_2D = self.types.weight[[1, 0]]
        tokens = tokens + types_2D.repeat(frames_VFD.shape[1], 1)[: tokens.shape[1]]
        mixed: Tensor = run_blocks(blocks, tokens, mask, self.heads, self.layout)[:, ::2]
        return mixed + frames_VFD

    def differences(self, frames_VFD: Tensor, mask_VF: Tensor) -> tuple[Tensor, Tensor]:
        """The temporal difference block: frame, difference, frame, …: tokens (V, 2F - 1, D) and their mask."""
        videos, frames, dim = frames_VFD.shape
        positions_FD = self.positions.weight[:frames]
        steps = frames_VFD[:, 1:] - frames_VFD[:, :-1] + positions_FD[1:]
        steps = run_blocks(self.difference_block, steps, mask_VF[:, 1:], self.heads, self.layout)
        steps = 2 * torch.sigmoid(self.difference_norm(steps)) - 1
        tokens = frames_VFD.new_empty(videos, 2 * frames - 1, dim)
        tokens[:, ::2] = frames_VFD
        tokens[:, 1::2] = steps
        mask = mask_VF.repeat_interleave(2, dim=1)[:, : 2 * frames - 1]
        return tokens, mask

    def aligned(self, tokens_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """The temporal alignment block: unit vectors (B, D), the mean of tokens' residuals at shared centres."""
        assigned_BNC = torch.softmax(tokens_BND @ self.centre_weight_CD.T, dim=-1) * mask_BN[..., None]
        summed_BCD = assigned_BNC.mT @ tokens_BND - assigned_BNC.sum(dim=1)[..., None] * self.centre_CD
        return F.normalize(F.normalize(summed_BCD, dim=-1).mean(dim=1), dim=-1)
