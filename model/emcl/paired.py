"""Paired bases: K bases z that captions and videos share, found by EM on labelled pairs (probabilistic CCA).

    x_t = m_t + W_t z + e_t,   x_v = m_v + W_v z + e_v,   z ~ N(0, I),   e ~ N(0, Psi)     (Bach and Jordan, 2005)

``expectation_maximization`` climbs the likelihood; its maximum has a closed form, which ``fit`` takes: with covariances
C_t, C_v, X of unit rows, C += reg · tr(C) / D · I and R = C^(-1/2), the singular value decomposition R_t X R_v = U r V'
gives A = R_t U and B = R_v V. A pair then scores, with x = A'(t - m_t) and y = B'(v - m_v), by the logarithm of
p(t, v) / p(t) p(v):

    sum_k [ r/(1-r²) x_k y_k - r²/(2(1-r²)) (x_k² + y_k²) ] + constant

which weighs each base by how reliable it is. As vectors: g = sqrt(r / (1 - r²)), y_t = unit(g∘x), y_v = unit(g∘y), and
the mixture with the cosine is the inner product of concatenated rows, so that FAISS and both directions work as before:

    row = [ x, sqrt(w) y ] / sqrt(1 + w)        t·v -> (t·v + w y_t·y_v) / (1 + w)

Shape suffixes: N rows or pairs, D channels, K bases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.emcl.hub import Floats, unit

Doubles = NDArray[np.float64]
Modality = Literal["text", "video"]

BASES, REGULARISATION, WEIGHT = 128, 1.0, 0.2
"""Without calibration (docs/method.md): alone, bases of few pairs hurt; mixed with the cosine they did not."""

LARGEST_CORRELATION = 0.995
"""A correlation of 1 would weigh its base without bound."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedBases:
    """A and B, the maps of texts and of videos, with their canonical ``correlations_K``.

    ``weight`` is in units of the spreads of both scores: the base score counts ``weight * cosine_spread /
    paired_spread`` times the cosine. ``pairs`` is how many they were fitted on, ``source`` where those came from.
    """

    mean_text_D: Doubles
    mean_video_D: Doubles
    text_map_DK: Doubles
    video_map_DK: Doubles
    correlations_K: Doubles
    cosine_spread: float
    paired_spread: float
    weight: float
    pairs: int
    source: str

    @classmethod
    def fit(
        cls,
        text_ND: Floats,
        video_ND: Floats,
        *,
        bases: int = BASES,
        regularisation: float = REGULARISATION,
        weight: float = WEIGHT,
        source: str = "",
    ) -> PairedBases:
        """Fit on N pairs of raw rows; row n of both is a pair. Order and rotations of the space do not matter.

        Raises ``ValueError`` for fewer than 2 pairs, rows that are not finite, or sides that do not match.
        """
        statistics = PairStatistics.of(text_ND, video_ND)
        return statistics.fit(bases=bases, regularisation=regularisation, weight=weight, source=source)

    @property
    def gains(self) -> Doubles:
        """g (K,): how much each base counts on either side."""
        found: Doubles = np.sqrt(self.correlations_K / (1 - self.correlations_K**2))
        return found

    @property
    def mixture(self) -> float:
        """The base score's factor beside the cosine."""
        return self.weight * self.cosine_spread / self.paired_spread if self.weight else 0.0

    def weighing(self, weight: float) -> PairedBases:
        """The same bases with another weight."""
        return replace(self, weight=weight)

    def side(self, modality: Modality) -> tuple[Doubles, Doubles]:
        """Mean (D,) and map (D, K) of a modality."""
        if modality == "text":
            return self.mean_text_D, self.text_map_DK
        return self.mean_video_D, self.video_map_DK

    def coordinates(self, rows_ND: Floats, modality: Modality) -> Doubles:
        """x or y (N, K): the posterior means of the bases, up to a factor for each, given raw rows of one modality."""
        mean_D, map_DK = self.side(modality)
        found: Doubles = (unit(rows_ND) - mean_D) @ map_DK
        return found

    def rows(self, rows_ND: Floats, modality: Modality) -> Doubles:
        """y_t or y_v (N, K), of unit norm."""
        return unit(self.gains * self.coordinates(rows_ND, modality))

    def log_ratios(self, text_ND: Floats, video_MD: Floats) -> Doubles:
        """log p(t, v) / p(t) p(v) of all pairs (N, M) under the fitted model."""
        x_NK, y_MK, r = self.coordinates(text_ND, "text"), self.coordinates(video_MD, "video"), self.correlations_K
        energy = r**2 / (2 * (1 - r**2))
        ratios: Doubles = (x_NK * (r / (1 - r**2))) @ y_MK.T
        ratios -= (x_NK**2 @ energy)[:, None] + (y_MK**2 @ energy) + 0.5 * np.log(1 - r**2).sum()
        return ratios

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As NumPy arrays; the inverse of ``from_arrays``."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PairedBases:
        """Rebuild from ``to_arrays``. Raises ``ValueError`` if an array is missing or does not fit the others."""
        missing = set(cls.__dataclass_fields__) - set(arrays)
        if missing or arrays["text_map_DK"].shape != arrays["video_map_DK"].shape:
            raise ValueError(f"paired bases are incomplete (missing: {sorted(missing)}); run `emcl index bases` again")
        return cls(
            mean_text_D=np.array(arrays["mean_text_D"], np.float64),
            mean_video_D=np.array(arrays["mean_video_D"], np.float64),
            text_map_DK=np.array(arrays["text_map_DK"], np.float64),
            video_map_DK=np.array(arrays["video_map_DK"], np.float64),
            correlations_K=np.array(arrays["correlations_K"], np.float64),
            cosine_spread=float(arrays["cosine_spread"]),
            paired_spread=float(arrays["paired_spread"]),
            weight=float(arrays["weight"]),
            pairs=int(arrays["pairs"]),
            source=str(arrays["source"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PairStatistics:
    """Means and covariances of unit rows of pairs: all that fitting needs, for several regularisations in turn."""

    mean_text_D: Doubles
    mean_video_D: Doubles
    text_DD: Doubles
    video_DD: Doubles
    cross_DD: Doubles
    text_ND: Doubles
    video_ND: Doubles

    @classmethod
    def of(cls, text_ND: Floats, video_ND: Floats) -> PairStatistics:
        """Of raw rows; row n of both is a pair. Raises ``ValueError`` as ``PairedBases.fit`` does."""
        if text_ND.shape != video_ND.shape or text_ND.ndim != 2 or len(text_ND) < 2:
            raise ValueError(
                f"paired bases need at least 2 pairs (N, D) of rows, got {text_ND.shape}, {video_ND.shape}"
            )
        text, video = unit(text_ND), unit(video_ND)
        if not (np.isfinite(text).all() and np.isfinite(video).all()):
            raise ValueError(
                "paired bases need finite rows, got NaN or infinity; find the damaged features with verify"
            )
        t, v = text - text.mean(axis=0), video - video.mean(axis=0)
        return cls(
            mean_text_D=text.mean(axis=0),
            mean_video_D=video.mean(axis=0),
            text_DD=t.T @ t / len(t),
            video_DD=v.T @ v / len(v),
            cross_DD=t.T @ v / len(t),
            text_ND=text,
            video_ND=video,
        )

    def regularised(self, regularisation: float) -> tuple[Doubles, Doubles]:
        """Both covariances with ``regularisation`` times their mean eigenvalue added to each."""
        dim = len(self.text_DD)
        text, video = (
            C_DD + regularisation * np.trace(C_DD) / dim * np.eye(dim) for C_DD in (self.text_DD, self.video_DD)
        )
        return text, video

    def fit(self, *, bases: int, regularisation: float, weight: float, source: str = "") -> PairedBases:
        """The maximum of the likelihood, in closed form."""
        root_text_DD, root_video_DD = (inverse_root(C_DD) for C_DD in self.regularised(regularisation))
        U_DK, r_K, Vt_KD = np.linalg.svd(root_text_DD @ self.cross_DD @ root_video_DD)
        count = min(bases, len(r_K))
        found = PairedBases(
            mean_text_D=self.mean_text_D,
            mean_video_D=self.mean_video_D,
            text_map_DK=root_text_DD @ U_DK[:, :count],
            video_map_DK=root_video_DD @ Vt_KD[:count].T,
            correlations_K=np.minimum(r_K[:count], LARGEST_CORRELATION),
            cosine_spread=1.0,
            paired_spread=1.0,
            weight=weight,
            pairs=len(self.text_ND),
            source=source,
        )
        text, video = self.text_ND, self.video_ND
        cosines, ratios = spread(text, video), spread(found.rows(text, "text"), found.rows(video, "video"))
        return replace(found, cosine_spread=cosines, paired_spread=max(ratios, 1e-12))


def spread(text_ND: Doubles, video_MD: Doubles) -> float:
    """Standard deviation of the inner products of all N × M pairs, from second moments."""
    mean = float(text_ND.mean(axis=0) @ video_MD.mean(axis=0))
    square = float(np.sum((text_ND.T @ text_ND / len(text_ND)) * (video_MD.T @ video_MD / len(video_MD))))
    return float(np.sqrt(max(square - mean**2, 0.0)))


def inverse_root(C_DD: Doubles) -> Doubles:
    """C^(-1/2) of a symmetric positive definite matrix."""
    values_D, vectors_DD = np.linalg.eigh(C_DD)
    root: Doubles = (vectors_DD / np.sqrt(np.maximum(values_D, 1e-12))) @ vectors_DD.T
    return root


def expectation_maximization(
    statistics: PairStatistics, *, bases: int, regularisation: float, iterations: int
) -> Iterator[tuple[float, Doubles, Doubles]]:
    """EM for the same model: after each iteration the mean log-likelihood, W_t and W_v (D, K).

    The noise of both modalities is whitened first, which EM is equivariant to. The start, the strongest directions of
    the cross covariance, depends neither on the order of the pairs nor on a rotation.
    """
    text_DD, video_DD = statistics.regularised(regularisation)
    root_text, root_video, dim = inverse_root(text_DD), inverse_root(video_DD), len(text_DD)
    cross_DD = root_text @ statistics.cross_DD @ root_video
    S = np.block([[np.eye(dim), cross_DD], [cross_DD.T, np.eye(dim)]])
    U, _, Vt = np.linalg.svd(statistics.cross_DD)
    W = 0.5 * np.concatenate([root_text @ U[:, :bases], root_video @ Vt[:bases].T])
    W /= np.maximum(np.linalg.norm(W, axis=0), 1e-12)
    Psi = np.eye(2 * dim)
    back = np.linalg.inv(np.block([[root_text, np.zeros_like(text_DD)], [np.zeros_like(text_DD), root_video]]))
    scale = float(np.linalg.slogdet(back)[1])
    for _ in range(iterations):
        noise_W = np.linalg.solve(Psi, W)
        M = np.linalg.inv(np.eye(bases) + W.T @ noise_W)
        spread_DK = S @ noise_W
        W = spread_DK @ M @ np.linalg.inv(M + M @ noise_W.T @ spread_DK @ M)
        full = S - spread_DK @ M @ W.T
        full = 0.5 * (full + full.T)
        Psi = np.block([[full[:dim, :dim], np.zeros((dim, dim))], [np.zeros((dim, dim)), full[dim:, dim:]]])
        covariance = W @ W.T + Psi
        likelihood = -0.5 * (
            np.linalg.slogdet(covariance)[1] + np.trace(np.linalg.solve(covariance, S)) + 2 * dim * np.log(2 * np.pi)
        )
        raw = back @ W
        yield likelihood - scale, raw[:dim], raw[dim:]
