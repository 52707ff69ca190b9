"""``tokens``: DRL (arXiv 2203.07111, the paper's "DCR"). Every word meets every frame; each side's best is averaged.

    q_ijlf = c_il · d_jf                                  unit word l of text i, unit frame f of video j
    S_ij = ½ Σ_l a_il max_f q_ijlf + ½ Σ_f b_jf max_l q_ijlf

``a`` and ``b`` are weights that two small networks compute from the raw features (WTI), or plain means (TI). The loss
may add channel decorrelation of matched words and frames (CDCR).

Released mistakes, reproduced by ``mask="multiply"`` only: padding counts as similarity 0, which is the best where all
real ones are negative. With the released scripts' ``off_diagonal`` 0 nothing is decorrelated: only the diagonal is
pulled to 1.

Shape suffixes: T texts, V videos, B pairs, L words, F frames, D channels, N rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.heads.base import Head, HeadKind

MaskRule = Literal["exclude", "multiply"]

_STANDARD_DEVIATION_FLOOR = 1e-6  # for a channel that is the same in all rows; the released code divides by zero there
_BLOCK_ELEMENTS = 1 << 24  # similarities of words and frames at once: 64 MiB in float32


class TokenWeights(nn.Module):
    """Softmax weights of tokens (B, L) from raw features. ``layers`` is DRL's "arch": 1, 2 (its scripts') or 3 linear.

    Weights start at N(0, 0.02), biases at 0.
    """

    def __init__(self, dim: int, *, layers: int = 2) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(layers - 1):
            parts += [nn.Linear(dim, dim), nn.ReLU()]
        self.score = nn.Sequential(*parts, nn.Linear(dim, 1))
        for module in self.score:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return weights (B, L) that sum to 1 over real tokens. Every item needs a real token."""
        scores_BL = self.score(tokens_BLD)[..., 0].masked_fill(~mask_BL.bool(), -torch.inf)
        return torch.softmax(scores_BL, dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Unit words and frames, masks that are True for real ones, and weights; ``None`` weighs real ones alike."""

    video_VFD: Tensor
    video_mask_VF: Tensor
    text_TLD: Tensor
    text_mask_TL: Tensor
    video_weight_VF: Tensor | None = None
    text_weight_TL: Tensor | None = None

    @property
    def texts(self) -> int:
        """T."""
        return len(self.text_TLD)

    @property
    def videos(self) -> int:
        """V."""
        return len(self.video_VFD)

    def take(self, texts: Tensor, videos: Tensor) -> Self:
        """Return these texts and videos."""
        return replace(
            self,
            video_VFD=self.video_VFD[videos],
            video_mask_VF=self.video_mask_VF[videos],
            text_TLD=self.text_TLD[texts],
            text_mask_TL=self.text_mask_TL[texts],
            video_weight_VF=None if self.video_weight_VF is None else self.video_weight_VF[videos],
            text_weight_TL=None if self.text_weight_TL is None else self.text_weight_TL[texts],
        )

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return weights of frames (V, F) and of words (T, L), means over real ones where none are given."""
        return (
            _means(self.video_mask_VF, self.video_VFD) if self.video_weight_VF is None else self.video_weight_VF,
            _means(self.text_mask_TL, self.text_TLD) if self.text_weight_TL is None else self.text_weight_TL,
        )


def _means(mask_NL: Tensor, like: Tensor) -> Tensor:
    real_NL = mask_NL.to(like)
    return real_NL / real_NL.sum(dim=1, keepdim=True).clamp(min=1)


class TokensHead(Head[TokenBatch]):
    """Weighted token interaction; token interaction for a batch without weights."""

    kind: ClassVar[HeadKind] = "tokens"

    def __init__(self, *, mask: MaskRule = "exclude") -> None:
        super().__init__()
        self.mask: MaskRule = mask

    def rows(self, batch: TokenBatch) -> Tensor:
        """Return (N, D): real frames video by video, then real words text by text."""
        return torch.cat([batch.video_VFD[batch.video_mask_VF.bool()], batch.text_TLD[batch.text_mask_TL.bool()]])

    def replace(self, batch: TokenBatch, rows: Tensor) -> TokenBatch:
        """Put corrected rows, normalised, back into their places; weights stay those of the raw features."""
        rows = F.normalize(rows, dim=-1)
        video_mask, text_mask = batch.video_mask_VF.bool(), batch.text_mask_TL.bool()
        frames = int(video_mask.sum())
        video = torch.zeros_like(batch.video_VFD).masked_scatter(video_mask[..., None], rows[:frames])
        text = torch.zeros_like(batch.text_TLD).masked_scatter(text_mask[..., None], rows[frames:])
        return replace(batch, video_VFD=video, text_TLD=text)

    def similarity(self, batch: TokenBatch) -> Tensor:
        """Return the mean of both directions' averaged best similarities."""
        video_weight_VF, text_weight_TL = batch.weights()
        per_text = batch.text_mask_TL.shape[1] * batch.video_mask_VF.numel()
        step = max(1, _BLOCK_ELEMENTS // max(1, per_text))
        blocks = [
            self._similarity(batch, slice(start, start + step), video_weight_VF, text_weight_TL)
            for start in range(0, batch.texts, step)
        ]
        return torch.cat(blocks)

    def _similarity(self, batch: TokenBatch, texts: slice, video_weight_VF: Tensor, text_weight_TL: Tensor) -> Tensor:
        products = torch.einsum("tld,vfd->tvlf", batch.text_TLD[texts], batch.video_VFD)
        words = batch.text_mask_TL[texts].bool()[:, None, :, None]
        frames = batch.video_mask_VF.bool()[None, :, None, :]
        best_frame_TVL = self._hidden(products, words, frames).amax(dim=3)
        best_word_TVF = self._hidden(products, frames, words).amax(dim=2)
        to_video = torch.einsum("tvl,tl->tv", best_frame_TVL, text_weight_TL[texts])
        to_text = torch.einsum("tvf,vf->tv", best_word_TVF, video_weight_VF)
        return (to_video + to_text) / 2

    def _hidden(self, products: Tensor, kept: Tensor, searched: Tensor) -> Tensor:
        """Hide padding from the maximum over what is searched; rows of padding, which weigh nothing, become 0."""
        if self.mask == "multiply":
            return products * (kept & searched)
        return products.masked_fill(~searched, torch.finfo(products.dtype).min).masked_fill(~kept, 0.0)


@dataclass(frozen=True, kw_only=True)
class Decorrelation:
    """CDCR's settings. ``on_diagonal`` is DRL's alpha1 (0.14 in the ViT-B/32 scripts, 0.11 in the README, 0.16 with
    plain TI), ``off_diagonal`` its alpha2 (0 in every script, 0.06 by default on its command line).

    ``kind`` 1 draws one word and one frame of each pair, 2 takes all, 3 (its best) weighs them.
    """

    kind: Literal[1, 2, 3] = 3
    on_diagonal: float = 0.14
    off_diagonal: float = 0.0
    weight: float = 1e-3


def channel_decorrelation(
    batch: TokenBatch, settings: Decorrelation, *, mask: MaskRule = "exclude", generator: torch.Generator | None = None
) -> Tensor:
    """Return CDCR of matched pairs (text i with video i): on_diagonal Σ (C_cc - 1)² + off_diagonal Σ C_cc'².

    C is the correlation (D, D) of real words with their best frame, and of real frames with their best word, each
    standardised per channel over its own rows with the unbiased deviation. With ``mask="multiply"`` (released) the best
    may be padding, and a constant channel gives NaN. ``generator`` draws for kind 1. Times ``settings.weight``
    it is added to the loss.
    """
    if batch.texts != batch.videos:
        raise ValueError(
            f"channel decorrelation needs matched pairs, got {batch.texts} texts and {batch.videos} videos"
        )
    words_BL, frames_BF = batch.text_mask_TL.bool(), batch.video_mask_VF.bool()
    products_BLF = batch.text_TLD @ batch.video_VFD.mT
    if mask == "multiply":
        to_frames = to_words = products_BLF * (words_BL[:, :, None] & frames_BF[:, None])
    else:
        lowest = torch.finfo(products_BLF.dtype).min
        to_frames = products_BLF.masked_fill(~frames_BF[:, None], lowest)
        to_words = products_BLF.masked_fill(~words_BL[:, :, None], lowest)
    frame_of_word_BLD = _gather(batch.video_VFD, to_frames.argmax(dim=2))
    word_of_frame_BFD = _gather(batch.text_TLD, to_words.argmax(dim=1))
    if settings.kind == 1:
        words_BL, frames_BF = _one_of_each(words_BL, generator), _one_of_each(frames_BF, generator)
    floor = 0.0 if mask == "multiply" else _STANDARD_DEVIATION_FLOOR
    words = [_standardised(part[words_BL], floor) for part in (batch.text_TLD, frame_of_word_BLD)]
    frames = [_standardised(part[frames_BF], floor) for part in (batch.video_VFD, word_of_frame_BFD)]
    if settings.kind == 3:
        video_weight_VF, text_weight_TL = batch.weights()
        shared = batch.texts
        correlation_words = (words[0] * text_weight_TL[words_BL][:, None]).T @ words[1] / shared
        correlation_frames = (frames[0] * video_weight_VF[frames_BF][:, None]).T @ frames[1] / shared
    else:
        correlation_words = words[0].T @ words[1] / len(words[0])
        correlation_frames = frames[0].T @ frames[1] / len(frames[0])
    correlation_DD = (correlation_words + correlation_frames) / 2
    diagonal_D = correlation_DD.diagonal()
    off = correlation_DD.square().sum() - diagonal_D.square().sum()
    return settings.on_diagonal * (diagonal_D - 1).square().sum() + settings.off_diagonal * off


def _gather(tokens_BND: Tensor, index_BM: Tensor) -> Tensor:
    return tokens_BND.gather(1, index_BM[..., None].expand(-1, -1, tokens_BND.shape[-1]))


def _one_of_each(mask_BL: Tensor, generator: torch.Generator | None) -> Tensor:
    drawn_B1 = torch.multinomial(mask_BL.float(), 1, generator=generator)
    return torch.zeros_like(mask_BL).scatter(1, drawn_B1, value=True)


def _standardised(rows_ND: Tensor, floor: float) -> Tensor:
    return (rows_ND - rows_ND.mean(dim=0)) / (rows_ND.std(dim=0) + floor)
