"""Text-conditioned pooling of frame features as they are stored: half precision in, float32 out, in one pass.

``model.emcl.pooling`` is the definition, and on float32 features this gives its numbers. Features come in the shards'
half precision, so that half as many bytes are gathered and, to a GPU, transferred. On a CPU they are widened a block of
candidates at a time: the float32 copy is read twice, for the weights and for the sum, while it is still in the cache,
and never travels to memory.

Shape suffixes: Q queries, N candidates, F frames, D channels, M candidates of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import PoolingConfig
from model.emcl.pooling import frame_weights, pool_videos

_BLOCK_ELEMENTS = 1 << 20
"""Features of one block: 4 MiB in float32. Half and twice as many were as fast; far more no longer fit into caches."""


def pool_stored_videos(
    text_QD: Tensor, features_QNFD: Tensor, mask_QNF: Tensor, config: PoolingConfig
) -> tuple[Tensor, Tensor]:
    """``pool_videos`` of features of any floating type: ``(pooled_QND, weights_QNF)``, both float32. Inference only."""
    queries, candidates, frames, dim = features_QNFD.shape
    if features_QNFD.device.type != "cpu" or features_QNFD.numel() == 0:
        return pool_videos(text_QD, features_QNFD.float(), mask_QNF, config)
    pooled_QND = text_QD.new_empty(queries, candidates, dim)
    weights_QNF = text_QD.new_empty(queries, candidates, frames)
    step = max(1, _BLOCK_ELEMENTS // (frames * dim))
    is_wide = features_QNFD.dtype == torch.float32
    wide_MFD = text_QD.new_empty(0 if is_wide else min(step, candidates), frames, dim)
    for q in range(queries):
        for start in range(0, candidates, step):
            block = slice(start, min(start + step, candidates))
            stored = features_QNFD[q, block]
            wide = stored if is_wide else wide_MFD[: block.stop - start].copy_(stored)
            logits_MF = torch.mv(wide.reshape(-1, dim), text_QD[q]).view(-1, frames)
            weights_MF = frame_weights(logits_MF, mask_QNF[q, block], config)
            weights_QNF[q, block] = weights_MF
            torch.bmm(weights_MF[:, None], wide, out=pooled_QND[q, block, None])
    return pooled_QND, weights_QNF
