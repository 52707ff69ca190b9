"""Pooling frames into one vector: plain for stage 1, text-conditioned for reranking (EMCL-Net, reference §2.3).

In: frame features, raw (not normalised), with a mask that is True for real frames. Out: pooled vectors and weights.
``pool_stored_videos`` is ``pool_videos`` for features in the shards' half precision, with the same result: half as many
bytes are gathered and, to a GPU, transferred. On a CPU they are widened block by block, so that the float32 copy, which
is read twice (for the weights and for the sum), stays in the cache.

Shape suffixes: Q queries, N candidates, F frames, D channels, B videos, M candidates of a block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PoolingConfig

BLOCK_ELEMENTS = 1 << 20
"""Features of one block: 4 MiB in float32. Half and twice as many were as fast; far more no longer fit into caches."""


def mean_pool(features_BFD: Tensor, mask_BF: Tensor) -> Tensor:
    """Masked mean over frames: (B, D), not normalised. It is text-conditioned pooling at infinite temperature.

    Frames are added one after the other, as a cumulative sum does: ``sum`` adds in groups that depend on F, so padding
    would change the last bits.
    """
    weights_BF1 = mask_BF[..., None].to(features_BFD)
    return (features_BFD * weights_BF1).cumsum(dim=-2)[..., -1, :] / weights_BF1.sum(dim=-2).clamp(min=1)


def unit_mean_pool(features_VFD: Tensor, mask_VF: Tensor) -> Tensor:
    """Average unit frames and normalise: (V, D), CLIP4Clip's pooling. A video without real frames is zero."""
    weights_VF1 = mask_VF[..., None].to(features_VFD)
    summed_VD = (F.normalize(features_VFD, dim=-1) * weights_VF1).sum(dim=-2)
    return F.normalize(summed_VD / weights_VF1.sum(dim=-2).clamp(min=1), dim=-1)


def frame_logits(inner_QNF: Tensor, text_norms: Tensor, frame_norms: Tensor, config: PoolingConfig) -> Tensor:
    """``text . frame`` as ``frame_weights`` takes it, of inner products and norms that broadcast against them.

    With ``unit_scale`` the size of the features cancels.
    """
    if config.unit_scale is None:
        return inner_QNF
    norms = (text_norms * frame_norms).clamp(min=torch.finfo(inner_QNF.dtype).tiny)
    return inner_QNF / norms * (config.unit_scale * config.temperature)


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return norms


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
    if config.unit_scale is not None:
        logits_QNF = frame_logits(logits_QNF, _norms(text_QD)[:, None, None], _norms(features_QNFD), config)
    weights_QNF = frame_weights(logits_QNF, mask_QNF, config)
    return torch.einsum("qnf,qnfd->qnd", weights_QNF, features_QNFD), weights_QNF


def pool_by_captions(
    captions_QND: Tensor, features_QFD: Tensor, mask_QF: Tensor, config: PoolingConfig
) -> tuple[Tensor, Tensor]:
    """Pool each query video once per candidate caption: ``(pooled_QND, weights_QNF)``."""
    logits_QNF = captions_QND @ features_QFD.mT
    if config.unit_scale is not None:
        logits_QNF = frame_logits(logits_QNF, _norms(captions_QND)[..., None], _norms(features_QFD)[:, None], config)
    weights_QNF = frame_weights(logits_QNF, mask_QF[:, None].expand_as(logits_QNF), config)
    return weights_QNF @ features_QFD, weights_QNF


def pool_stored_videos(
    text_QD: Tensor, features_QNFD: Tensor, mask_QNF: Tensor, config: PoolingConfig
) -> tuple[Tensor, Tensor]:
    """``pool_videos`` of features of any floating type: ``(pooled_QND, weights_QNF)``, both float32. Inference only."""
    queries, candidates, frames, dim = features_QNFD.shape
    if features_QNFD.device.type != "cpu" or features_QNFD.numel() == 0:
        return pool_videos(text_QD, features_QNFD.float(), mask_QNF, config)
    pooled_QND = text_QD.new_empty(queries, candidates, dim)
    weights_QNF = text_QD.new_empty(queries, candidates, frames)
    step = max(1, BLOCK_ELEMENTS // (frames * dim))
    is_wide = features_QNFD.dtype == torch.float32
    wide_MFD = text_QD.new_empty(0 if is_wide else min(step, candidates), frames, dim)
    for q in range(queries):
        for start in range(0, candidates, step):
            block = slice(start, min(start + step, candidates))
            stored = features_QNFD[q, block]
            wide = stored if is_wide else wide_MFD[: block.stop - start].copy_(stored)
            logits_MF = torch.mv(wide.reshape(-1, dim), text_QD[q]).view(-1, frames)
            if config.unit_scale is not None:
                logits_MF = frame_logits(logits_MF, _norms(text_QD[q]), _norms(wide), config)
            weights_MF = frame_weights(logits_MF, mask_QNF[q, block], config)
            weights_QNF[q, block] = weights_MF
            torch.bmm(weights_MF[:, None], wide, out=pooled_QND[q, block, None])
    return pooled_QND, weights_QNF
