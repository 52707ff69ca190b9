"""What the paper compares EMCL with: other corrections f of the same rows, each as f(X) + X (supplementary).

    pca          m + (X - m) P Pᵀ, P the leading axes               no parameters
    transformer  one post-norm encoder layer                        each row alone, or all rows as one sequence
    fc           W₂ relu(W₁ x + b₁) + b₂
    sae          W₂ sigmoid(W₁ x + b₁) + b₂, with a penalty         mean activations are driven to 0.05

In: rows (N, D), videos and texts. Out: rows (N, D) of any norm, to be normalised. No code was released: what PCA is
fitted on, the layer's heads, whether its rows see each other, and the penalty's weights are unknown, and settings here.

Shape suffixes: N rows, D channels, H hidden channels, K axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CorrectionKind = Literal["emcl", "pca", "transformer", "fc", "sae", "none"]
CORRECTION_KINDS: tuple[CorrectionKind, ...] = get_args(CorrectionKind)

ACTIVATION_TARGET = 0.05  # rho, stated by the paper


class Comparator(nn.Module, ABC):
    """A correction that is added to its rows."""

    @abstractmethod
    def correction(self, rows_ND: Tensor) -> Tensor:
        """Return f(X), (N, D)."""

    def forward(self, rows_ND: Tensor) -> Tensor:
        """Return f(X) + X."""
        return self.correction(rows_ND) + rows_ND

    def penalty(self, rows_ND: Tensor) -> Tensor:
        """Return what the correction adds to the loss; 0 for all but ``sae``."""
        return rows_ND.new_zeros(())


class PcaCorrection(Comparator):
    """Projection on ``kept`` leading axes. Nothing is learnt, and no gradient flows into the axes.

    ``fit`` is what the axes are those of: ``running`` mean and covariance, moved by each training batch; the ``batch``
    at hand; or ``fixed`` ones, those of rows given to ``fit_on``.
    """

    mean_D: Tensor
    covariance_DD: Tensor

    def __init__(
        self, dim: int, *, kept: int = 32, fit: Literal["running", "batch", "fixed"] = "running", momentum: float = 0.9
    ) -> None:
        super().__init__()
        if not 1 <= kept <= dim:
            raise ValueError(f"PCA keeps 1 to {dim} axes, got {kept}")
        self.kept, self.fit, self.momentum, self.batches = kept, fit, momentum, 0
        self.register_buffer("mean_D", torch.zeros(dim))
        self.register_buffer("covariance_DD", torch.eye(dim))

    @torch.no_grad()
    def fit_on(self, rows_ND: Tensor) -> None:
        """Take mean and covariance of these rows."""
        self.mean_D, self.covariance_DD = _moments(rows_ND)
        self.batches = 1

    @torch.no_grad()
    def _axes(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        if self.fit == "batch":
            mean_D, covariance_DD = _moments(rows_ND)
        else:
            if self.fit == "running" and self.training:
                share = self.momentum if self.batches else 0.0
                mean_D, covariance_DD = _moments(rows_ND)
                self.mean_D = share * self.mean_D + (1 - share) * mean_D
                self.covariance_DD = share * self.covariance_DD + (1 - share) * covariance_DD
                self.batches += 1
            mean_D, covariance_DD = self.mean_D, self.covariance_DD
        return mean_D, torch.linalg.eigh(covariance_DD).eigenvectors[:, -self.kept :]  # ascending: the last are largest

    def correction(self, rows_ND: Tensor) -> Tensor:
        """Return the rows projected on the leading axes."""
        mean_D, axes_DK = self._axes(rows_ND)
        return mean_D + (rows_ND - mean_D) @ axes_DK @ axes_DK.T


def _moments(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    centred_ND = rows_ND - rows_ND.mean(dim=0)
    return rows_ND.mean(dim=0), centred_ND.T @ centred_ND / len(rows_ND)


class TransformerCorrection(Comparator):
    """One encoder layer. With ``rows="single"`` each row is a sequence of its own: scores depend on no other row."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        inner: int = 512,
        dropout: float = 0.1,
        rows: Literal["single", "batch"] = "single",
    ) -> None:
        super().__init__()
        self.rows = rows
        self.layer = nn.TransformerEncoderLayer(dim, heads, inner, dropout, batch_first=True)
        for parameter in self.layer.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def correction(self, rows_ND: Tensor) -> Tensor:
        """Return the layer's output, after its second norm."""
        tokens = rows_ND[:, None] if self.rows == "single" else rows_ND[None]
        out: Tensor = self.layer(tokens)
        return out.reshape(rows_ND.shape)


class FeedForwardCorrection(Comparator):
    """Two linear layers around ``relu``. With ``start_at_identity`` W₂ starts at zero, so that f(X) + X starts at X."""

    def __init__(self, dim: int, *, inner: int = 256, start_at_identity: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, inner), nn.Linear(inner, dim)
        for linear in (self.first, self.second):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if start_at_identity:
            nn.init.zeros_(self.second.weight)

    def hidden(self, rows_ND: Tensor) -> Tensor:
        """Return the hidden activations (N, H)."""
        return torch.relu(self.first(rows_ND))

    def correction(self, rows_ND: Tensor) -> Tensor:
        """Return W₂ hidden + b₂."""
        out: Tensor = self.second(self.hidden(rows_ND))
        return out


class SparseAutoencoderCorrection(FeedForwardCorrection):
    """Sigmoid activations whose mean over the rows is driven to 0.05, and outputs to the rows.

    ``reconstruction`` and ``sparsity`` weigh the two penalties; the sources state neither.
    """

    def __init__(
        self,
        dim: int,
        *,
        inner: int = 256,
        start_at_identity: bool = False,
        reconstruction: float = 1.0,
        sparsity: float = 1e-3,
    ) -> None:
        super().__init__(dim, inner=inner, start_at_identity=start_at_identity)
        self.reconstruction, self.sparsity = reconstruction, sparsity

    def hidden(self, rows_ND: Tensor) -> Tensor:
        """Return the hidden activations (N, H)."""
        return torch.sigmoid(self.first(rows_ND))

    def penalties(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of f(X) as X, and Σ KL(0.05 ‖ mean activation); unweighted."""
        active_H, rho = self.hidden(rows_ND).mean(dim=0), ACTIVATION_TARGET
        divergence_H = rho * torch.log(rho / active_H) + (1 - rho) * torch.log((1 - rho) / (1 - active_H))
        return F.mse_loss(self.correction(rows_ND), rows_ND), divergence_H.sum()

    def penalty(self, rows_ND: Tensor) -> Tensor:
        """Return both penalties, weighted."""
        error, divergence = self.penalties(rows_ND)
        return self.reconstruction * error + self.sparsity * divergence


class NoCorrection(Comparator):
    """f(X) = 0."""

    def correction(self, rows_ND: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(rows_ND)


def build_comparator(kind: CorrectionKind, dim: int) -> Comparator:
    """Return a correction with the paper's sizes. ``emcl`` is ``model.emcl.em.EMCL``, and no comparator."""
    if kind == "pca":
        return PcaCorrection(dim, kept=min(32, dim))
    if kind == "transformer":
        return TransformerCorrection(dim)
    if kind == "fc":
        return FeedForwardCorrection(dim)
    if kind == "sae":
        return SparseAutoencoderCorrection(dim)
    if kind == "none":
        return NoCorrection()
    raise ValueError(f"comparators are {', '.join(CORRECTION_KINDS[1:])}, got {kind!r}")
