"""The EM pass of ``model.emcl.em`` for scoring alone: the same cosines, without ever making the corrected rows.

In: rows of embeddings and the module whose pass corrects them. Out: inner products and norms of the corrected rows.
``model.emcl.em`` is the definition; this file computes what follows from it exactly, and only without gradients:

1. The first E-step of ``reference`` starts from one scalar per base, so ``Xᵀ mu`` is the outer product of the channels'
   sums and that state: no product of matrices.
2. The norm of ``mu`` cancels the column sums of Z, so Z is never divided by them inside the loop. What is left of the
   reference's guards against division by zero is kept (``_Start.guard``).
3. A corrected row is ``x + a dᵀ`` with K numbers ``a`` and the decoder d (D, K). With ``g = x d + a (dᵀ d) / 2`` the
   inner product of two of them is ``x·x' + a·g' + g·a'``, and ``x d`` is what the last M-step made before its norm.
4. With many rows the loop needs only the covariance ``XᵀX`` (D, D): ``XᵀX Z`` and the norms of ``X Z`` follow from it.

On a CPU queries are taken one after the other, so that one query's rows stay in the cache; an accelerator takes all at
once. Z is kept as (K, D): both products then read their operands in order.

Shape suffixes: B independent passes, N rows, D channels, K bases, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.emcl.em import EMCL, EPSILON

_SQUARE_BLOCK = 128
"""Columns of the covariance that are computed together; blocks below the diagonal are copied, not computed."""


@dataclass(frozen=True, kw_only=True)
class Factored:
    """Corrected rows in factors: row n stands for ``rows_BND[n] + a_BNK[n] dᵀ``; see point 3 above for ``g_BNK``."""

    rows_BND: Tensor
    a_BNK: Tensor | None
    g_BNK: Tensor | None

    def cosines_to_last(self) -> Tensor:
        """Cosines (B, N - 1) of the last row with all others."""
        products_BN = _against_last(self.rows_BND)
        if self.a_BNK is not None and self.g_BNK is not None:
            products_BN = products_BN + torch.bmm(self.a_BNK[:, :-1], self.g_BNK[:, -1:].mT)[..., 0]
            products_BN = products_BN + torch.bmm(self.g_BNK[:, :-1], self.a_BNK[:, -1:].mT)[..., 0]
        norms_BN = self._norms()
        return products_BN / (norms_BN[:, :-1] * norms_BN[:, -1:])

    def cosines_of_halves(self) -> Tensor:
        """Cosines (B, N / 2) of each row of the first half with its partner in the second."""
        half = self.rows_BND.shape[1] // 2
        products_BP = (self.rows_BND[:, :half] * self.rows_BND[:, half:]).sum(dim=-1)
        if self.a_BNK is not None and self.g_BNK is not None:
            products_BP = products_BP + (self.a_BNK[:, :half] * self.g_BNK[:, half:]).sum(dim=-1)
            products_BP = products_BP + (self.g_BNK[:, :half] * self.a_BNK[:, half:]).sum(dim=-1)
        norms_BN = self._norms()
        return products_BP / (norms_BN[:, :half] * norms_BN[:, half:])

    def _norms(self) -> Tensor:
        """Norms (B, N) of the corrected rows, as ``F.normalize`` bounds them from below."""
        norms_BN: Tensor = torch.linalg.vector_norm(self.rows_BND, dim=-1)
        if self.a_BNK is not None and self.g_BNK is not None:
            squares_BN = norms_BN.square() + 2 * (self.a_BNK * self.g_BNK).sum(dim=-1)
            norms_BN = squares_BN.clamp_(min=0).sqrt_()
        return norms_BN.clamp_(min=1e-12)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where the loop starts, and what it needs besides rows: ``z_BKD``, iterations left, and the factor of logits.

    Logits are ``Xᵀ X Z * kernel_B11 / (||X Z|| + guard)``. ``guarded_sums`` says whether the guard grows with the
    column sums of Z, which is what the reference's own guards come to once its division by them is left out.
    """

    z_BKD: Tensor
    iterations: int
    kernel_B11: Tensor
    guarded_sums: bool

    def guard(self, z_BKD: Tensor) -> Tensor | float:
        return EPSILON * (EPSILON + z_BKD.sum(dim=-1)) if self.guarded_sums else EPSILON


def corrected_cosines(
    emcl: EMCL | None, rows_BND: Tensor, mask_BN: Tensor | None, cosines: Callable[[Factored], Tensor]
) -> Tensor:
    """``cosines`` of the rows after the pass of ``emcl``, or of the rows as they are without one. Inference only.

    ``cosines`` is one of the methods of ``Factored``. A set's result is the same to the last bit whatever other sets
    are in the batch, on a CPU.
    """
    if rows_BND.device.type != "cpu" or len(rows_BND) < 2:
        return cosines(_factored(emcl, rows_BND, mask_BN))
    each = range(len(rows_BND))
    parts = (_factored(emcl, rows_BND[b, None], None if mask_BN is None else mask_BN[b, None]) for b in each)
    return torch.cat([cosines(part) for part in parts])


def _factored(emcl: EMCL | None, rows_BND: Tensor, mask_BN: Tensor | None) -> Factored:
    if emcl is None:
        return Factored(rows_BND=rows_BND, a_BNK=None, g_BNK=None)
    return factored_pass(emcl, rows_BND, mask_BN)


def factored_pass(emcl: EMCL, rows_BND: Tensor, mask_BN: Tensor | None) -> Factored:
    """``emcl(rows_BND, mask_BN)`` in factors, each of the B sets by its own pass. Inference only.

    Raises ``ValueError`` if the module is training: its state would have to move.
    """
    if emcl.training:
        raise ValueError("the factored pass scores, it cannot train: call eval() on the model first")
    rows_BND = rows_BND.to(emcl.dtype)
    if emcl.config.mode == "channel":
        rows_BND = F.normalize(rows_BND, dim=-1)
    if mask_BN is not None:
        rows_BND = rows_BND * mask_BN[..., None]
    strength = emcl.config.beta * emcl.ramp
    if strength == 0:
        return Factored(rows_BND=rows_BND, a_BNK=None, g_BNK=None)
    a_BNK, g_BNK = _factors(emcl, rows_BND, _counts(rows_BND, mask_BN), strength)
    return Factored(rows_BND=rows_BND, a_BNK=a_BNK, g_BNK=g_BNK)


def prefers_covariance(rows: int, dim: int, bases: int, iterations: int) -> bool:
    """Whether the loop over the covariance takes fewer multiplications than the loop over the rows."""
    blocks = -(-dim // _SQUARE_BLOCK)
    square = rows * dim * dim * (blocks + 1) / (2 * blocks)
    return square + iterations * dim * dim * bases < 2 * iterations * rows * dim * bases


def covariance(rows_BND: Tensor) -> Tensor:
    """``rows_BNDᵀ rows_BND`` (B, D, D); what is below the diagonal is copied from above it."""
    dim = rows_BND.shape[-1]
    out_BDD = rows_BND.new_empty(len(rows_BND), dim, dim)
    for start in range(0, dim, _SQUARE_BLOCK):
        end = min(start + _SQUARE_BLOCK, dim)
        out_BDD[:, start:end, start:] = torch.bmm(rows_BND[..., start:end].mT, rows_BND[..., start:])
        out_BDD[:, end:, start:end] = out_BDD[:, start:end, end:].mT
    return out_BDD


def _factors(emcl: EMCL, rows_BND: Tensor, counts_B11: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """``a`` and ``g`` (B, N, K) of the rows."""
    start = _reference_start(emcl, rows_BND) if emcl.config.mode == "reference" else _channel_start(emcl, counts_B11)
    _, rows, dim = rows_BND.shape
    loop = _loop_covariance if prefers_covariance(rows, dim, start.z_BKD.shape[1], start.iterations) else _loop_rows
    z_BKD = loop(rows_BND, start) if start.iterations else start.z_BKD
    mu_BNK = torch.bmm(rows_BND, z_BKD.mT)
    sums_B1K = EPSILON + z_BKD.sum(dim=-1)[:, None]
    decoded_BNK = mu_BNK / sums_B1K  # the rows times the decoder
    guard = EPSILON * sums_B1K if start.guarded_sums else EPSILON
    mu_BNK /= torch.linalg.vector_norm(mu_BNK, dim=1, keepdim=True) + guard
    gram_BKK = torch.bmm(z_BKD, z_BKD.mT) / (sums_B1K * sums_B1K.mT)
    spread_BNK = torch.bmm(mu_BNK, gram_BKK)
    if emcl.config.mode == "channel":
        lengths_BN = (mu_BNK * spread_BNK).sum(dim=-1).clamp_(min=0).sqrt_()  # of the correction at strength 1
        factor_B11 = strength / (lengths_BN.sum(dim=1)[:, None, None] / counts_B11 + EPSILON)
    else:
        factor_B11 = rows_BND.new_full((1, 1, 1), strength)
    return mu_BNK.mul_(factor_B11), torch.addcmul(decoded_BNK, spread_BNK, factor_B11, value=0.5)


def _channel_start(emcl: EMCL, counts_B11: Tensor) -> _Start:
    """From the responsibility table, M-step first."""
    return _Start(
        z_BKD=emcl.state.mT.expand(len(counts_B11), -1, -1),
        iterations=emcl.config.iterations,
        kernel_B11=(emcl.dim / counts_B11).sqrt() / emcl.config.sigma,
        guarded_sums=False,
    )


def _reference_start(emcl: EMCL, rows_BND: Tensor) -> _Start:
    """After the first E-step, which is of rank 1: every row of the released ``mu`` is the state."""
    sums_B1D = rows_BND.sum(dim=1, keepdim=True)
    return _Start(
        z_BKD=torch.softmax(emcl.state.mT * sums_B1D / emcl.config.sigma, dim=1),
        iterations=emcl.config.iterations - 1,
        kernel_B11=rows_BND.new_full((1, 1, 1), 1 / emcl.config.sigma),
        guarded_sums=True,
    )


def _loop_rows(rows_BND: Tensor, start: _Start) -> Tensor:
    """M-step and E-step in turn, on the rows; ``z_BKD`` in the end."""
    z_BKD = start.z_BKD
    for _ in range(start.iterations):
        mu_BNK = torch.bmm(rows_BND, z_BKD.mT)
        norms_BK = torch.linalg.vector_norm(mu_BNK, dim=1)
        mu_BNK *= start.kernel_B11 / (norms_BK + start.guard(z_BKD))[:, None]
        z_BKD = torch.softmax(torch.bmm(mu_BNK.mT, rows_BND), dim=1)
    return z_BKD


def _loop_covariance(rows_BND: Tensor, start: _Start) -> Tensor:
    """The same on the covariance: its cost does not grow with the rows."""
    z_BKD, square_BDD = start.z_BKD, covariance(rows_BND)
    for _ in range(start.iterations):
        logits_BKD = torch.bmm(z_BKD, square_BDD)
        norms_BK = (logits_BKD * z_BKD).sum(dim=-1).clamp_(min=0).sqrt_()
        logits_BKD *= (start.kernel_B11[..., 0] / (norms_BK + start.guard(z_BKD)))[..., None]
        z_BKD = torch.softmax(logits_BKD, dim=1)
    return z_BKD


def _counts(rows_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
    if mask_BN is None:
        return rows_BND.new_full((len(rows_BND), 1, 1), rows_BND.shape[1])
    return mask_BN.sum(dim=1).clamp(min=1).to(rows_BND)[:, None, None]


def _against_last(rows_BND: Tensor) -> Tensor:
    return torch.bmm(rows_BND[:, :-1], rows_BND[:, -1:].mT)[..., 0]
