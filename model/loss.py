"""The training loss: symmetric InfoNCE over the cosines of a batch (EMCL-Net, reference §2.3 and §2.4).

In: features of the *whole* batch; with several processes they are gathered first, so that every process sees the same
matrix. Out: a scalar. Text i and video i are a pair, all others in the batch are negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from model.net import EMCLNet


def symmetric_info_nce(similarity_BB: Tensor, log_scale: Tensor) -> Tensor:
    """Return the mean of both directions' cross-entropies of ``similarity_BB * exp(log_scale)``, diagonal as target.

    Raises ``ValueError`` if the matrix is not square.
    """
    if similarity_BB.dim() != 2 or similarity_BB.shape[0] != similarity_BB.shape[1]:
        raise ValueError(f"the contrastive loss needs as many texts as videos, got {tuple(similarity_BB.shape)}")
    logits_BB = similarity_BB * log_scale.exp()
    targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, targets_B) + F.cross_entropy(logits_BB.T, targets_B)) / 2


def contrastive_loss(
    net: EMCLNet, text_BD: Tensor, features_BFD: Tensor, mask_BF: Tensor, *, joint_emcl: bool
) -> Tensor:
    """Return the loss of a batch: text-conditioned pooling of all pairs, with the EM pass if ``joint_emcl``, cosine.

    In training mode the pass also moves the EMCL state by its momentum, once per call.
    """
    similarity_BB = net.score_matrix(text_BD, features_BFD, mask_BF, rerank="emcl" if joint_emcl else "none")
    return symmetric_info_nce(similarity_BB, net.clip.logit_scale)
