"""The training loss: symmetric InfoNCE over the cosines of a batch (EMCL-Net, reference §2.3 and §2.4).

In: features of the *whole* batch; with several processes they are gathered first, so that every process sees the same
matrix. Out: a scalar. Text i and video i are a pair, the target of their row and column.

All others in the batch are negatives, but for those that are known to belong together as well (``known_pairs``): two
captions of one video, or two videos with one caption, are not each other's negatives. They are left out of the sums
below the fraction, neither pulled nor pushed. The reference takes them for negatives (reference §2.4), and so does this
loss if it is not told the items' identities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from model.net import EMCLNet


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
    if similarity_BB.dim() != 2 or similarity_BB.shape[0] != similarity_BB.shape[1]:
        raise ValueError(f"the contrastive loss needs as many texts as videos, got {tuple(similarity_BB.shape)}")
    logits_BB = similarity_BB * log_scale.exp()
    targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
    if known_BB is not None:
        others_BB = known_BB & (targets_B[:, None] != targets_B)
        logits_BB = logits_BB.masked_fill(others_BB, -torch.inf)
    return (F.cross_entropy(logits_BB, targets_B) + F.cross_entropy(logits_BB.T, targets_B)) / 2


def contrastive_loss(
    net: EMCLNet,
    text_BD: Tensor,
    features_BFD: Tensor,
    mask_BF: Tensor,
    *,
    joint_emcl: bool,
    identities_B2: Tensor | None = None,
) -> Tensor:
    """Return the loss of a batch: text-conditioned pooling of all pairs, with the EM pass if ``joint_emcl``, cosine.

    ``identities_B2`` (int64) tells which other pairs of the batch belong together and are no negatives; None makes
    negatives of them all, as the reference does. In training mode the EM pass also moves the EMCL state by its
    momentum, once per call.
    """
    similarity_BB = net.score_matrix(text_BD, features_BFD, mask_BF, rerank="emcl" if joint_emcl else "none")
    known_BB = None if identities_B2 is None else known_pairs(identities_B2)
    return symmetric_info_nce(similarity_BB, net.clip.logit_scale, known_BB)
