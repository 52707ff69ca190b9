"""Pooling frames into one vector: plain for stage 1, text-conditioned for reranking (EMCL-Net, reference §2.3).

In: frame features, raw (not normalised), with a mask that is True for real frames. Out: pooled vectors and weights.
Shape suffixes: Q queries, N candidates, F frames, D channels, B videos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import PoolingConfig


def mean_pool(features_BFD: Tensor, mask_BF: Tensor) -> Tensor:
    """Masked mean over frames: (B, D), not normalised. It is text-conditioned pooling at infinite temperature."""
    weights_BF1 = mask_BF[..., None].to(features_BFD)
    return (features_BFD * weights_BF1).sum(dim=-2) / weights_BF1.sum(dim=-2).clamp(min=1)


def frame_weights(logits_QNF: Tensor, mask_QNF: Tensor, config: PoolingConfig) -> Tensor:
    """Softmax over frames of ``text . frame / temperature``: (Q, N, F), zero on padding.

    A candidate without any real frame gets all-zero weights, so that its pooled vector is zero.
    """
    logits_QNF = logits_QNF / config.temperature
    if config.mask == "after":  # reference behaviour 5: padding keeps its share of the denominator
        return torch.softmax(logits_QNF, dim=-1) * mask_QNF
    masked = logits_QNF.masked_fill(~mask_QNF, torch.finfo(logits_QNF.dtype).min)
    return torch.softmax(masked, dim=-1) * mask_QNF


def pool_videos(
    text_QD: Tensor, features_QNFD: Tensor, mask_QNF: Tensor, config: PoolingConfig
) -> tuple[Tensor, Tensor]:
    """Pool each query's N candidate videos by its text: ``(pooled_QND, weights_QNF)``."""
    queries, candidates, frames, dim = features_QNFD.shape
    flat = features_QNFD.reshape(queries, candidates * frames, dim)
    logits_QNF = torch.bmm(flat, text_QD[..., None]).view(queries, candidates, frames)
    weights_QNF = frame_weights(logits_QNF, mask_QNF, config)
    return torch.einsum("qnf,qnfd->qnd", weights_QNF, features_QNFD), weights_QNF


def pool_by_captions(
    captions_QND: Tensor, features_QFD: Tensor, mask_QF: Tensor, config: PoolingConfig
) -> tuple[Tensor, Tensor]:
    """Pool each query video once per candidate caption: ``(pooled_QND, weights_QNF)``."""
    logits_QNF = captions_QND @ features_QFD.mT
    weights_QNF = frame_weights(logits_QNF, mask_QF[:, None].expand_as(logits_QNF), config)
    return weights_QNF @ features_QFD, weights_QNF
