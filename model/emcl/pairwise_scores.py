"""Text-conditioned pooling scores of all texts and videos, in blocks, without any pooled vector.

The score of a text t and a video with frames x_f is the cosine of t and p = Σ_f w_f x_f, w the softmax over frames of
t·x_f / temperature (``model.emcl.pooling``). All of it follows from the inner products l_f = t·x_f, which the softmax
needs anyway, and from the video's Gram matrix G = X Xᵀ (F, F):

    t·p = Σ_f w_f l_f        |p|² = wᵀ G w

and the softmax's denominator cancels in the cosine, also where the reference lets padding keep a share of it. So what
is to be done is one matrix product T x V·F x D, and a small one per video; what is to be kept is one block of T x V·F.

Shape suffixes: T texts, V videos, F frames, D channels; lower case for those of one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PoolingConfig

# Inner products of one block. On a CPU they should stay in a core's cache (2 MiB); a GPU wants more work at once.
CPU_BLOCK_ELEMENTS, GPU_BLOCK_ELEMENTS = 1 << 19, 1 << 26
TEXTS_AT_ONCE = 256
SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize


@torch.no_grad()
def score_all_pairs(
    text_TD: Tensor, features_VFD: Tensor, mask_VF: Tensor, pooling: PoolingConfig, *, out: Tensor | None = None
) -> Tensor:
    """Return cosines (T, V) float32 of raw texts and the videos as each text pools them; 0 for a zero vector.

    ``features_VFD`` may be on the CPU and be of any floating type (a memory-mapped index, say); blocks of it are
    copied to the texts' device. The result is on the CPU, in ``out`` (T, V) if that is given. Equal to scoring by
    ``EMCLNet.score_videos`` with ``rerank="none"`` to 1e-5, but where padding takes all but 1e-12 of the weight (mask
    ``after``): that gives 0, this the cosine. Raises ``ValueError`` for shapes that do not fit.
    """
    texts, videos = len(text_TD), len(features_VFD)
    if features_VFD.shape[2:] != text_TD.shape[1:] or mask_VF.shape != features_VFD.shape[:2]:
        raise ValueError(
            f"expected texts (T, D), features (V, F, D) and a mask (V, F), got {tuple(text_TD.shape)}, "
            f"{tuple(features_VFD.shape)} and {tuple(mask_VF.shape)}"
        )
    if out is None:
        out = torch.empty(texts, videos)
    if out.shape != (texts, videos):
        raise ValueError(f"out must have shape {(texts, videos)}, got {tuple(out.shape)}")
    unit_DT = F.normalize(text_TD.float(), dim=-1).T.contiguous()
    # What the softmax sees is t·x / temperature; the blocks below hold inner products with the unit text.
    sharpness_T = torch.linalg.vector_norm(text_TD.float(), dim=-1) / pooling.temperature
    if pooling.unit_scale is not None:
        sharpness_T = torch.full_like(sharpness_T, pooling.unit_scale)
    for some_videos, some_texts in _blocks(texts, features_VFD, text_TD.device):
        features_vFD = features_VFD[some_videos].to(text_TD.device).float()
        mask_vF = mask_VF[some_videos].to(text_TD.device).bool()
        gram_vFF = features_vFD @ features_vFD.mT
        norms_vF = None
        if pooling.unit_scale is not None:
            norms_vF = torch.linalg.vector_norm(features_vFD, dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        for chosen in some_texts:
            scores_vt = score_block(unit_DT[:, chosen], sharpness_T[chosen], features_vFD, gram_vFF, mask_vF, norms_vF)
            out[chosen, some_videos] = scores_vt.T.to(out.device, out.dtype)
    return out


def score_block(
    unit_Dt: Tensor,
    sharpness_t: Tensor,
    features_vFD: Tensor,
    gram_vFF: Tensor,
    mask_vF: Tensor,
    norms_vF: Tensor | None,
) -> Tensor:
    """Cosines (v, t) of one block: unit texts and a softmax sharpness for each; ``norms_vF`` where it sees cosines."""
    videos, frames, dim = features_vFD.shape
    logits_vFt = (features_vFD.view(videos * frames, dim) @ unit_Dt).view(videos, frames, -1)
    weights_vFt = logits_vFt * sharpness_t
    if norms_vF is not None:  # the softmax sees cosines
        weights_vFt.div_(norms_vF[..., None])
    if not bool(mask_vF.all()):
        weights_vFt.masked_fill_(~mask_vF[..., None], torch.finfo(torch.float32).min)
    weights_vFt.sub_(weights_vFt.amax(dim=1, keepdim=True)).exp_()
    if not bool(mask_vF.any(dim=1).all()):  # a video without frames has the zero vector
        weights_vFt.mul_(mask_vF[..., None])
    along_vt = logits_vFt.mul_(weights_vFt).sum(dim=1)
    norm_vt = torch.bmm(gram_vFF, weights_vFt).mul_(weights_vFt).sum(dim=1).clamp_(min=0).sqrt_()
    return along_vt.div_(norm_vt.clamp_(min=SMALLEST_NORM)).clamp_(-1, 1)


def _blocks(texts: int, features_VFD: Tensor, device: torch.device) -> Iterator[tuple[slice, list[slice]]]:
    """Blocks of videos, each with the blocks of texts that it meets: a video's frames are read once."""
    videos, frames, _ = features_VFD.shape
    elements = CPU_BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
    texts_at_once = TEXTS_AT_ONCE if device.type == "cpu" else 16 * TEXTS_AT_ONCE
    step = max(1, elements // (texts_at_once * max(1, frames)))
    chosen = [slice(start, start + texts_at_once) for start in range(0, texts, texts_at_once)]
    for start in range(0, videos, step):
        yield slice(start, start + step), chosen
