"""``experts``: MMT. A video is one vector for each of M experts (faces, speech, sound, …), and so is a text.

    S_ij = Σ_e w_ije t_ie · v_je        w_ije = wt_ie · wv_je / Σ_e

EMCL runs once for each expert, over its videos and texts, from a state of its own. In the released copy the kernel
width multiplies, and the state is normalised over the experts.

Shape suffixes: T texts, V videos, B items, M experts, L temporal tokens, N tokens, D channels, C channels of a feature,
K bases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.emcl.em import EPSILON, reference_em
from model.heads.base import Head, HeadKind
from model.heads.losses import hard_triplets
from model.temporal import REFERENCE_EPSILON


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertsBatch:
    """Embeddings for every expert and their weights; ``None`` weighs a side's experts alike."""

    video_VMD: Tensor
    text_TMD: Tensor
    video_weight_VM: Tensor | None = None
    text_weight_TM: Tensor | None = None

    @property
    def texts(self) -> int:
        """T."""
        return len(self.text_TMD)

    @property
    def videos(self) -> int:
        """V."""
        return len(self.video_VMD)

    def take(self, texts: Tensor, videos: Tensor) -> Self:
        """Return these texts and videos."""
        return replace(
            self,
            video_VMD=self.video_VMD[videos],
            text_TMD=self.text_TMD[texts],
            video_weight_VM=None if self.video_weight_VM is None else self.video_weight_VM[videos],
            text_weight_TM=None if self.text_weight_TM is None else self.text_weight_TM[texts],
        )


class ExpertsHead(Head[ExpertsBatch]):
    """Weighted sum of the experts' inner products. ``negatives`` is the number of hard negatives of its loss."""

    kind: ClassVar[HeadKind] = "experts"

    def __init__(self, *, negatives: int = 1, margin: float = 0.05) -> None:
        super().__init__()
        self.negatives = negatives
        self.margin = margin

    def rows(self, batch: ExpertsBatch) -> Tensor:
        """Return (M, V + T, D): for each expert videos, then texts."""
        return torch.cat([batch.video_VMD, batch.text_TMD]).transpose(0, 1)

    def replace(self, batch: ExpertsBatch, rows: Tensor) -> ExpertsBatch:
        """Put corrected rows, normalised, in the place of the embeddings."""
        rows_NMD = F.normalize(rows, dim=-1).transpose(0, 1)
        return replace(batch, video_VMD=rows_NMD[: batch.videos], text_TMD=rows_NMD[batch.videos :])

    def similarity(self, batch: ExpertsBatch) -> Tensor:
        """Return the weighted sum over experts. A pair without any weight in common scores 0."""
        video_weight_VM = _alike(batch.video_VMD) if batch.video_weight_VM is None else batch.video_weight_VM
        text_weight_TM = _alike(batch.text_TMD) if batch.text_weight_TM is None else batch.text_weight_TM
        weighted_TMD = batch.text_TMD * text_weight_TM[..., None]
        total_TV = text_weight_TM @ video_weight_VM.T
        sum_TV = weighted_TMD.flatten(1) @ (batch.video_VMD * video_weight_VM[..., None]).flatten(1).T
        return torch.where(total_TV > 0, sum_TV / total_TV.clamp(min=torch.finfo(total_TV.dtype).tiny), 0.0)

    def loss(self, similarity_BB: Tensor, log_scale: Tensor, known_BB: Tensor | None = None) -> Tensor:
        """Return the triplet loss with hard negatives; it has no logit scale. Pairs in ``known_BB`` are left out."""
        if known_BB is not None:
            others_BB = known_BB & ~torch.eye(len(known_BB), dtype=torch.bool, device=known_BB.device)
            similarity_BB = similarity_BB.masked_fill(others_BB, -1e8)
        return hard_triplets(similarity_BB, negatives=self.negatives, margin=self.margin)


def _alike(embeddings_BMD: Tensor) -> Tensor:
    return embeddings_BMD.new_full(embeddings_BMD.shape[:2], 1.0 / embeddings_BMD.shape[1])


class ExpertsEMCL(nn.Module):
    """The released MMT copy of the EM pass: a state (M, 1, K) for M experts, moved by momentum in training."""

    state: Tensor

    def __init__(
        self,
        experts: int,
        *,
        num_bases: int,
        iterations: int,
        beta: float,
        width: float = 1.0,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        """``width`` multiplies the kernel, as in the released copy."""
        super().__init__()
        self.iterations, self.beta, self.width, self.momentum = iterations, beta, width, momentum
        generator = torch.Generator().manual_seed(seed)
        state = torch.randn(experts, 1, num_bases, generator=generator) * (2.0 / num_bases) ** 0.5
        self.register_buffer("state", state / (EPSILON + state.norm(dim=0, keepdim=True)))

    def forward(self, rows_MND: Tensor) -> Tensor:
        """Correct each expert's rows by its own pass; raw scale."""
        mu_MNK, z_MDK = reference_em(rows_MND, self.state, iterations=self.iterations, sigma=1.0 / self.width)
        if self.training:
            with torch.no_grad():
                moved = mu_MNK.mean(dim=1, keepdim=True)
                self.state.mul_(self.momentum).add_(moved, alpha=1.0 - self.momentum)
        return rows_MND + self.beta * (mu_MNK @ z_MDK.mT)


class GatedUnit(nn.Module):
    """h = linear(x), then h · sigmoid(batch norm(linear(h)))."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.gate = nn.Linear(dim, dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, features_BC: Tensor) -> Tensor:
        """Return (B, D)."""
        hidden_BD = self.linear(features_BC)
        gated: Tensor = hidden_BD * torch.sigmoid(self.norm(self.gate(hidden_BD)))
        return gated


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpertFeatures:
    """What one expert says of B videos: features (B, L, C) with a mask and time stamps in seconds, and their maximum
    over time (B, C)."""

    features_BLC: Tensor
    mask_BL: Tensor
    seconds_BL: Tensor
    maximum_BC: Tensor


class Mmt(nn.Module):
    """MMT's layers after the experts and the text encoder (BERT's [CLS], or any table of text vectors).

    ``types`` are the experts' numbers in the table of token types; 0 is that of the video's own token. ``dim`` is 512,
    ``layers`` and ``heads`` 4, ``inner`` 3072 as released.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        text_width: int,
        dim: int,
        *,
        types: Sequence[int],
        heads: int = 4,
        layers: int = 4,
        inner: int = 3072,
        positions: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.experts = tuple(widths)
        self.types = tuple(types)
        self.reduce = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in widths.items()})
        self.position_table = nn.Embedding(positions, dim)
        self.type_table = nn.Embedding(max(types) + 1, dim)
        self.norm = nn.LayerNorm(dim, eps=REFERENCE_EPSILON)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim,
                heads,
                inner,
                dropout,
                activation=F.gelu,
                layer_norm_eps=REFERENCE_EPSILON,
                batch_first=True,
            )
            for _ in range(layers)
        )
        self.video_gate = nn.ModuleDict({name: GatedUnit(dim, dim) for name in widths})
        self.text_gate = nn.ModuleDict({name: GatedUnit(text_width, dim) for name in widths})
        self.text_weight = nn.ModuleDict({name: nn.Linear(text_width, 1) for name in widths})
        self.text_dropout = nn.Dropout(dropout)

    def forward(self, videos: Mapping[str, ExpertFeatures], text_TC: Tensor) -> ExpertsBatch:
        """Embed videos and texts. Experts that are missing from a video are kept, as released."""
        return ExpertsBatch(
            video_VMD=self.embed_videos(videos),
            text_TMD=torch.stack([self.text_gate[name](text_TC) for name in self.experts], dim=1),
            text_weight_TM=self.weigh_texts(text_TC),
        )

    def weigh_texts(self, text_TC: Tensor) -> Tensor:
        """Return the softmax over experts of a linear score of the text: (T, M)."""
        dropped = self.text_dropout(text_TC)
        return torch.softmax(torch.cat([self.text_weight[name](dropped) for name in self.experts], dim=1), dim=1)

    def embed_videos(self, videos: Mapping[str, ExpertFeatures]) -> Tensor:
        """Return the experts' embeddings (V, M, D): each aggregation token after the transformer, gated."""
        first = videos[self.experts[0]].maximum_BC
        count, dim = len(first), self.norm.normalized_shape[0]
        features = [first.new_zeros(count, 1, dim)]
        masks = [torch.ones(count, 1, dtype=torch.bool, device=first.device)]
        positions = [torch.zeros(count, 1, dtype=torch.long, device=first.device)]
        types, places, place = [0], [], 1
        for name, number in zip(self.experts, self.types, strict=True):
            expert = videos[name]
            stacked = torch.cat([expert.maximum_BC[:, None], expert.features_BLC], dim=1)
            features.append(F.normalize(self.reduce[name](stacked), dim=-1))
            mask_BL = expert.mask_BL.bool()
            masks += [mask_BL.any(dim=1, keepdim=True), mask_BL]
            last = self.position_table.num_embeddings - 1
            positions += [positions[0], expert.seconds_BL.long().clamp(0, last)]
            types += [number] * stacked.shape[1]
            places.append(place)
            place += stacked.shape[1]
        type_N = torch.tensor(types, device=first.device)
        tokens = torch.cat(features, dim=1) + self.position_table(torch.cat(positions, dim=1)) + self.type_table(type_N)
        hidden = self.dropout(self.norm(tokens))
        padding = ~torch.cat(masks, dim=1)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return torch.stack(
            [self.video_gate[name](hidden[:, place]) for name, place in zip(self.experts, places, strict=True)], dim=1
        )
