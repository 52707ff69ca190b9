"""What an EM pass does to a batch, in three numbers for the training log: are the bases distinct, has the correction
more than one direction, and how large is it.

In: an ``EMCL`` module and rows (N, D) as it gets them. Out: ``EMCLDiagnostics``. The module's state stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.emcl.em import EMCL, EPSILON, channel_em, reference_em

# Bases closer than this are one; the reference's collapsed ones agree to more digits (reference §1.3).
SAME_COSINE = 0.9999


@dataclass(frozen=True, kw_only=True)
class EMCLDiagnostics:
    """``distinct_bases`` of K; ``effective_rank`` of the correction, 1 to K; ``correction_ratio``, its mean row norm
    over the rows' mean norm, at the strength in force."""

    distinct_bases: int
    effective_rank: float
    correction_ratio: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers as a log has them."""
        return {
            "distinct_bases": self.distinct_bases,
            "effective_rank": round(self.effective_rank, 3),
            "correction_ratio": round(self.correction_ratio, 5),
        }


def count_distinct(bases_NK: Tensor) -> int:
    """Count the columns of ``bases_NK`` that no earlier counted one equals in direction (cosine above 0.9999)."""
    columns_NK = F.normalize(bases_NK.double(), dim=0)
    cosines_KK = columns_NK.T @ columns_NK
    kept: list[int] = []
    for column in range(cosines_KK.shape[0]):
        if not kept or float(cosines_KK[column, kept].max()) <= SAME_COSINE:
            kept.append(column)
    return len(kept)


def effective_rank(matrix_ND: Tensor) -> float:
    """Return exp of the entropy of the singular values' shares (Roy and Vetterli, 2007); 0 for a zero matrix."""
    matrix = matrix_ND.double()
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    if float(total) == 0:
        return 0.0
    shares = singular / total
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


@torch.no_grad()
def diagnose(emcl: EMCL, rows_ND: Tensor) -> EMCLDiagnostics:
    """Run the pass of ``emcl`` over one set of rows, without moving its state, and measure it."""
    config = emcl.config
    rows_1ND = rows_ND.float()[None]
    if config.mode == "reference":
        mu, z = reference_em(rows_1ND, emcl.state[None], iterations=config.iterations, sigma=config.sigma)
        correction_ND, bases_NK = (mu @ z.mT)[0], mu[0]
        ratio = config.beta * emcl.ramp * _mean_norm(correction_ND) / (_mean_norm(rows_1ND[0]) + EPSILON)
    else:
        rows_1ND = F.normalize(rows_1ND, dim=-1)
        counts = rows_1ND.new_full((1, 1, 1), rows_1ND.shape[1])
        em = channel_em(rows_1ND, counts, emcl.state, iterations=config.iterations, sigma=config.sigma)
        z = em.responsibilities_BDK
        correction_ND, bases_NK = (em.bases_BNK @ (z / (EPSILON + z.sum(dim=1, keepdim=True))).mT)[0], em.bases_BNK[0]
        ratio = config.beta * emcl.ramp  # that is how the strength is defined in this mode
    return EMCLDiagnostics(
        distinct_bases=count_distinct(bases_NK),
        effective_rank=effective_rank(correction_ND),
        correction_ratio=ratio,
    )


def _mean_norm(rows_ND: Tensor) -> float:
    return float(torch.linalg.vector_norm(rows_ND, dim=-1).mean())
