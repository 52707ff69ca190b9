"""The EM pass of EMCL (NeurIPS 2022, section 3) and its frozen, linear form.

In: rows of embeddings, videos and texts together. Out: the same rows, each with its reconstruction from K bases added.
The D feature *channels* are clustered, each being a point with one coordinate per row:

    E-step   Z = softmax_K(Xᵀ mu / sigma)      responsibilities, (D, K)
    M-step   mu = X Z / ||X Z||                bases, (N, K), unit columns
    output   X + beta * mu Zᵀ                  with the columns of Z scaled to sum to 1

Two modes (``EMCLConfig.mode``). ``reference`` is the released arithmetic, step for step: state ``(1, K)``, one scalar
per base, which makes the bases collapse to two; raw rows; a correction that shrinks as 1/sqrt(rows) and that autograd
takes for a constant. ``channel`` deviates where that is a flaw: rows are L2-normalised first; the state is a
responsibility table ``(D, K)``, so bases stay distinct; channels are scaled to unit RMS norm so that ``sigma`` does not
depend on the number of rows; ``beta`` is the ratio of the correction's mean row norm to the features'; the gradient
flows through the correction as through a linear map, with responsibilities held constant.

Shape suffixes: B independent passes, N rows, D channels, K bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import EMCLConfig

EPSILON = 1e-6  # the reference's guard in every division


@dataclass(frozen=True, kw_only=True)
class EMResult:
    """What a pass converged to: ``bases_BNK`` with unit columns, ``responsibilities_BDK`` whose K-rows sum to 1."""

    bases_BNK: Tensor
    responsibilities_BDK: Tensor
    base_norms_B1K: Tensor


@torch.no_grad()
def reference_em(rows_BND: Tensor, state_B1K: Tensor, *, iterations: int, sigma: float) -> tuple[Tensor, Tensor]:
    """The released loop (E-step first, from one scalar per base). Returns ``mu`` (B, N, K) and ``Z`` (B, D, K).

    Z comes normalised, its columns sum to 1. ``state_B1K`` may have a leading dimension of 1, or one per pass as in
    the multi-expert (MMT) copy, whose kernel
    width multiplies: pass ``sigma = 1 / lamd`` for it.
    """
    mu_BNK = state_B1K.expand(rows_BND.shape[0], rows_BND.shape[1], -1)
    for _ in range(iterations):
        z_BDK = torch.softmax(rows_BND.mT @ mu_BNK / sigma, dim=-1)
        z_BDK = z_BDK / (EPSILON + z_BDK.sum(dim=1, keepdim=True))
        mu_BNK = rows_BND @ z_BDK
        mu_BNK = mu_BNK / (EPSILON + mu_BNK.norm(dim=1, keepdim=True))
    return mu_BNK, z_BDK


@torch.no_grad()
def channel_em(rows_BND: Tensor, counts_B11: Tensor, table_DK: Tensor, *, iterations: int, sigma: float) -> EMResult:
    """Our loop: M-step first, from a responsibility table; ``rows_BND`` of unit norm, padding rows zero.

    Zero rows change nothing: they add nothing to any inner product, and ``counts_B11`` holds the real rows.
    The reference divides Z by its column sums inside the loop; the norm of ``mu`` cancels that, so it is left out.
    """
    # Rows of unit norm give the D channels a mean square norm of N / D; this brings it to 1.
    kernel_B11 = (rows_BND.shape[-1] / counts_B11).sqrt() / sigma
    columns_BDN = rows_BND.mT
    z_BDK = table_DK.expand(rows_BND.shape[0], -1, -1)
    for _ in range(iterations):
        mu_BNK = rows_BND @ z_BDK
        norms_B1K = torch.linalg.vector_norm(mu_BNK, dim=1, keepdim=True)
        z_BDK = torch.softmax(columns_BDN @ (mu_BNK * (kernel_B11 / (norms_B1K + EPSILON))), dim=-1)
    mu_BNK = rows_BND @ z_BDK
    norms_B1K = torch.linalg.vector_norm(mu_BNK, dim=1, keepdim=True) + EPSILON
    return EMResult(bases_BNK=mu_BNK / norms_B1K, responsibilities_BDK=z_BDK, base_norms_B1K=norms_B1K)


@dataclass(frozen=True, kw_only=True)
class FrozenMap:
    """EMCL with its responsibilities fixed: the linear map ``x -> x + strength * (x Z / s) Znᵀ``.

    Z is ``responsibilities_DK`` (rows sum to 1), s its ``base_norms_K`` on the reference corpus, Zn is Z with columns
    that sum to 1. On a CPU a row is mapped the same, to the last bit, whatever else is in the batch.
    """

    mode: str
    responsibilities_DK: Tensor
    base_norms_K: Tensor
    strength: float

    def apply(self, rows_ND: Tensor) -> Tensor:
        """Map rows (N, D) of any norm; returns L2-normalised rows (N, D). A zero row stays zero."""
        rows_ND = rows_ND.float()
        if self.strength == 0:
            return F.normalize(rows_ND, dim=-1)
        if self.mode == "channel":
            rows_ND = F.normalize(rows_ND, dim=-1)
        decoder_DK = self.responsibilities_DK / (EPSILON + self.responsibilities_DK.sum(dim=0))
        assigned_NK = _row_by_row(rows_ND, self.responsibilities_DK) / self.base_norms_K
        correction_ND = _row_by_row(assigned_NK, decoder_DK.T)
        return F.normalize(rows_ND + self.strength * correction_ND, dim=-1)

    @classmethod
    def neutral(cls, dim: int) -> FrozenMap:
        """The map that only normalises rows (N, ``dim``): where there is no corpus yet to fit one on."""
        return cls(mode="channel", responsibilities_DK=torch.ones(dim, 1), base_norms_K=torch.ones(1), strength=0.0)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The map as NumPy arrays, for ``np.savez``; the inverse of ``from_arrays``."""
        return {
            "mode": np.array(self.mode),
            "responsibilities": self.responsibilities_DK.cpu().numpy(),
            "base_norms": self.base_norms_K.cpu().numpy(),
            "strength": np.array(self.strength, dtype=np.float64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> FrozenMap:
        """Rebuild a map from ``to_arrays``. Raises ``ValueError`` if an array is missing or does not fit the others."""
        missing = {"mode", "responsibilities", "base_norms", "strength"} - set(arrays.keys())
        if missing:
            raise ValueError(
                f"frozen map lacks the arrays {sorted(missing)}; rebuild the index with `emcl index rebuild`"
            )
        responsibilities, norms = arrays["responsibilities"], arrays["base_norms"]
        if responsibilities.ndim != 2 or norms.shape != responsibilities.shape[1:]:
            raise ValueError(
                f"frozen map expects responsibilities (D, K) and base norms (K,), got {responsibilities.shape} and "
                f"{norms.shape}; rebuild the index with `emcl index rebuild`"
            )
        return cls(
            mode=str(arrays["mode"]),
            responsibilities_DK=torch.from_numpy(np.array(responsibilities, dtype=np.float32)),
            base_norms_K=torch.from_numpy(np.array(norms, dtype=np.float32)),
            strength=float(arrays["strength"]),
        )


_ALIGNED = 16
"""Floats in the 64 bytes at whose multiples rows begin, so that no product's order of sums depends on where it is."""


def _row_by_row(rows_ND: Tensor, matrix_DK: Tensor) -> Tensor:
    """``rows_ND @ matrix_DK``, each row by a product of its own.

    One product of all rows adds in an order that depends on how many they are and on where a row stands. Zeros that
    fill up D and K change no sum.
    """
    (count, dim), bases = rows_ND.shape, matrix_DK.shape[1]
    more_D, more_K = -dim % _ALIGNED, -bases % _ALIGNED
    matrix_DK = F.pad(matrix_DK, (0, more_K, 0, more_D)).contiguous()
    products_N1K = torch.bmm(F.pad(rows_ND, (0, more_D))[:, None], matrix_DK.expand(count, -1, -1))
    return products_N1K[:, 0, :bases]


class EMCL(nn.Module):
    """The EM pass as a module. Its state is a persistent buffer, so checkpoints, ``.to`` and DDP carry it
    (reference behaviour 1 has it in none of them).

    ``state`` is ``(1, K)`` in ``reference`` mode (±1, as released) and ``(D, K)`` in ``channel`` mode (rows sum to 1).
    In training mode a forward pass moves it by momentum.
    """

    state: Tensor

    def __init__(self, dim: int, config: EMCLConfig) -> None:
        super().__init__()
        self.dim = dim
        self.config = config
        self.ramp = 1.0  # share of beta in force; a training may raise it from 0 (model.train.config)
        generator = torch.Generator().manual_seed(config.seed)
        if config.mode == "reference":
            state = torch.randn(1, config.num_bases, generator=generator) * (2.0 / config.num_bases) ** 0.5
            state = state / (EPSILON + state.abs())
        else:
            state = torch.softmax(torch.randn(dim, config.num_bases, generator=generator), dim=-1)
        self.register_buffer("state", state)

    @property
    def dtype(self) -> torch.dtype:
        """What the pass computes in: float32 whatever the towers' precision, or float64 after ``double()``."""
        return torch.float64 if self.state.dtype == torch.float64 else torch.float32

    def forward(self, rows_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Correct rows ``(B, N, D)`` or ``(N, D)``, each of the B sets by its own pass.

        ``mask_BN`` is True for real rows; masked rows influence nothing and come back as zeros. Returns the input's
        shape in float32 (float64 after ``double()``): raw scale in ``reference`` mode, rows near unit norm in
        ``channel`` mode (not normalised).
        Raises ``ValueError`` for a wrong shape.
        """
        if rows_BND.dim() not in (2, 3) or rows_BND.shape[-1] != self.dim:
            raise ValueError(f"EMCL expects rows (N, {self.dim}) or (B, N, {self.dim}), got {tuple(rows_BND.shape)}")
        if rows_BND.dim() == 2:
            return self.forward(rows_BND[None], None if mask_BN is None else mask_BN[None])[0]
        rows_BND = rows_BND.to(self.dtype)
        if self.config.mode == "reference":
            return self._reference(rows_BND, mask_BN)
        return self._channel(rows_BND, mask_BN)

    def _reference(self, rows_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        if mask_BN is not None:
            rows_BND = rows_BND * mask_BN[..., None]
        mu_BNK, z_BDK = reference_em(
            rows_BND, self.state[None], iterations=self.config.iterations, sigma=self.config.sigma
        )
        if self.training:
            self._move_state(_masked_row_mean(mu_BNK, mask_BN).mean(dim=0))
        return self.config.beta * self.ramp * (mu_BNK @ z_BDK.mT) + rows_BND

    def _channel(self, rows_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        rows_BND = F.normalize(rows_BND, dim=-1)
        counts_B11 = rows_BND.new_full((rows_BND.shape[0], 1, 1), rows_BND.shape[1])
        if mask_BN is not None:
            rows_BND = rows_BND * mask_BN[..., None]
            counts_B11 = mask_BN.sum(dim=1).clamp(min=1).to(rows_BND)[:, None, None]
        if self.config.beta == 0 and not self.training:
            return rows_BND
        em = channel_em(rows_BND, counts_B11, self.state, iterations=self.config.iterations, sigma=self.config.sigma)
        if self.training:
            self._move_state(em.responsibilities_BDK.mean(dim=0))
        z_BDK = em.responsibilities_BDK
        decoder_BDK = z_BDK / (EPSILON + z_BDK.sum(dim=1, keepdim=True))
        # Recomputed from the rows only where a gradient must flow; the loop's last bases are the same numbers.
        bases_BNK = rows_BND @ z_BDK / em.base_norms_B1K if rows_BND.requires_grad else em.bases_BNK
        correction_BND = bases_BNK @ decoder_BDK.mT
        return rows_BND + correction_BND * _relative_strength(self.config.beta * self.ramp, correction_BND, counts_B11)

    @torch.no_grad()
    def _move_state(self, target: Tensor) -> None:
        self.state.mul_(self.config.momentum).add_(target, alpha=1.0 - self.config.momentum)

    @torch.no_grad()
    def freeze(self, rows_ND: Tensor) -> FrozenMap:
        """Run the pass over a reference corpus ``rows_ND`` (videos and captions together) and keep its linear map.

        Raises ``ValueError`` for an empty corpus or rows that are not finite.
        """
        if rows_ND.dim() != 2 or rows_ND.shape[1] != self.dim or len(rows_ND) == 0:
            raise ValueError(f"a frozen map needs rows (N >= 1, {self.dim}), got {tuple(rows_ND.shape)}")
        if not torch.isfinite(rows_ND).all():
            raise ValueError(
                "a frozen map needs finite rows, got NaN or infinity; find the damaged features with verify"
            )
        if self.config.beta == 0:
            return FrozenMap.neutral(self.dim)
        rows_1ND = rows_ND.float()[None]
        if self.config.mode == "channel":
            return self._freeze_channel(F.normalize(rows_1ND, dim=-1))
        _, z_1DK = reference_em(rows_1ND, self.state[None], iterations=self.config.iterations, sigma=self.config.sigma)
        # z is column-normalised already; mapping with it, base_norms must be those of X z.
        norms_K = (rows_1ND @ z_1DK)[0].norm(dim=0) + EPSILON
        return self._map(z_1DK[0], norms_K, self.config.beta)

    def _freeze_channel(self, rows_1ND: Tensor) -> FrozenMap:
        counts = rows_1ND.new_full((1, 1, 1), rows_1ND.shape[1])
        em = channel_em(rows_1ND, counts, self.state, iterations=self.config.iterations, sigma=self.config.sigma)
        z_DK = em.responsibilities_BDK[0]
        correction_1ND = em.bases_BNK @ (z_DK / (EPSILON + z_DK.sum(dim=0))).T
        strength = _relative_strength(self.config.beta, correction_1ND, counts)
        return self._map(z_DK, em.base_norms_B1K[0, 0], float(strength))

    def _map(self, responsibilities_DK: Tensor, base_norms_K: Tensor, strength: float) -> FrozenMap:
        return FrozenMap(
            mode=self.config.mode,
            responsibilities_DK=responsibilities_DK,
            base_norms_K=base_norms_K,
            strength=strength,
        )


def _masked_row_mean(values_BNK: Tensor, mask_BN: Tensor | None) -> Tensor:
    if mask_BN is None:
        return values_BNK.mean(dim=1, keepdim=True)[:, 0]
    weights_BN1 = mask_BN[..., None].to(values_BNK)
    return (values_BNK * weights_BN1).sum(dim=1) / weights_BN1.sum(dim=1).clamp(min=1)


def _relative_strength(beta: float, correction_BND: Tensor, counts_B11: Tensor) -> Tensor:
    """Factor (B, 1, 1) that gives the correction a mean row norm of ``beta``, the features' being 1; no gradient."""
    mean_norm_B11 = torch.linalg.vector_norm(correction_BND.detach(), dim=-1).sum(dim=1)[:, None, None] / counts_B11
    strength_B11: Tensor = beta / (mean_norm_B11 + EPSILON)
    return strength_B11
