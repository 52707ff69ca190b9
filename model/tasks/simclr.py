"""SimCLR with EMCL: NT-Xent over two views of each image.

In: projections (2B, D), the second views B rows after the first. Out: the mean cross-entropy of 2B rows, each against
its other view among all others. With EMCL, whose place no source states: unit rows → EM over all 2B → unit rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.heads.base import Correction


def nt_xent(rows_ND: Tensor, *, temperature: float = 0.5, emcl: Correction | None = None) -> Tensor:
    """Return the loss. Raises ``ValueError`` for an odd number of rows."""
    if len(rows_ND) % 2:
        raise ValueError(f"NT-Xent needs two views of every image, got {len(rows_ND)} rows")
    unit_ND = F.normalize(rows_ND, dim=-1)
    if emcl is not None:
        unit_ND = F.normalize(emcl(unit_ND), dim=-1)
    own = torch.eye(len(unit_ND), dtype=torch.bool, device=unit_ND.device)
    logits_NN = (unit_ND @ unit_ND.T / temperature).masked_fill(own, -torch.inf)
    return F.cross_entropy(logits_NN, torch.arange(len(unit_ND), device=unit_ND.device).roll(len(unit_ND) // 2))
