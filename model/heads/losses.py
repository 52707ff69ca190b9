"""Losses of the baselines: symmetric InfoNCE, MMT's triplets with hard negatives, its margin over all pairs.

In: similarities (B, B), texts x videos, whose diagonal holds the matches. Out: a scalar.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def known_pairs(identities_B2: Tensor) -> Tensor:
    """Return (B, B) bool: whether text i is known to describe video j, from the pairs of the batch alone.

    ``identities_B2`` holds a digest of each item's video and one of its caption (``Batch.identities``). Text i
    describes video j if some item k of the batch has the caption of i and the video of j: i and j share the video
    (k = i), or the caption (k = j), or k links them. The diagonal is True.
    """
    videos_B, captions_B = identities_B2.unbind(dim=1)
    same_video_BB = (videos_B[:, None] == videos_B).float()
    same_caption_BB = (captions_B[:, None] == captions_B).float()
    return same_caption_BB @ same_video_BB > 0


def symmetric_info_nce(similarity_BB: Tensor, log_scale: Tensor, known_BB: Tensor | None = None) -> Tensor:
    """Return the mean of both directions' cross-entropies of ``similarity_BB * exp(log_scale)``, diagonal as target.

    Where ``known_BB`` is True off the diagonal, the pair is left out of its row's and its column's softmax. Raises
    ``ValueError`` if the matrix is not square.
    """
    _refuse_unpaired(similarity_BB)
    logits_BB = similarity_BB * log_scale.exp()
    targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
    if known_BB is not None:
        others_BB = known_BB & (targets_B[:, None] != targets_B)
        logits_BB = logits_BB.masked_fill(others_BB, -torch.inf)
    return (F.cross_entropy(logits_BB, targets_B) + F.cross_entropy(logits_BB.T, targets_B)) / 2


def hard_triplets(similarity_BB: Tensor, *, negatives: int, margin: float = 0.05, released: bool = False) -> Tensor:
    """Return the mean of max(0, margin - (match - negative)) over each text's and each video's hardest negatives.

    ``negatives`` is 1 for MMT on MSR-VTT and 32 elsewhere. There are B - 1 negatives: more are refused, except with
    ``released``, where the masked diagonal then counts as one of similarity -1e8, which adds nothing to the sum but one
    to the number. The released code also loses a pair whose similarity is exactly 0, which it takes for masked; that
    is reproduced with ``released``.
    """
    _refuse_unpaired(similarity_BB)
    available = len(similarity_BB) - 1
    if negatives > available and not released:
        raise ValueError(
            f"{negatives} hard negatives were asked for, a batch of {available + 1} has {available}; lower the number "
            "of negatives or raise the batch size"
        )
    match_BB = torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device)
    losses = []
    for scores_BB in (similarity_BB, similarity_BB.T):
        excluded_BB = match_BB | (scores_BB == 0) if released else match_BB
        hardest_BK = scores_BB.masked_fill(excluded_BB, -1e8).topk(min(negatives, len(scores_BB)), dim=1).values
        losses.append(F.relu(margin - (scores_BB.diagonal()[:, None] - hardest_BK)))
    return torch.cat(losses).mean()


def max_margin(similarity_BB: Tensor, *, margin: float = 0.05) -> Tensor:
    """Return MMT's own loss: max(0, margin - (match - negative)), the mean over all negatives of both directions."""
    _refuse_unpaired(similarity_BB)
    matches_B1 = similarity_BB.diagonal()[:, None]
    off_BB = ~torch.eye(len(similarity_BB), dtype=torch.bool, device=similarity_BB.device)
    per_text_BB = F.relu(margin - (matches_B1 - similarity_BB))
    per_video_BB = F.relu(margin - (matches_B1 - similarity_BB.T))
    return torch.cat([per_text_BB[off_BB], per_video_BB[off_BB]]).mean()


def _refuse_unpaired(similarity_BB: Tensor) -> None:
    if similarity_BB.dim() != 2 or similarity_BB.shape[0] != similarity_BB.shape[1]:
        raise ValueError(f"the contrastive loss needs as many texts as videos, got {tuple(similarity_BB.shape)}")
