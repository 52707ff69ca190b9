"""All forms of EMCL behind one interface: fit, a frozen map for the index, a pass for each query.

| mode | EM over | frozen map (stage 1) | pass per query (rerank) |
|---|---|---|---|
| ``off`` | | rows of unit norm | cosine |
| ``reference``, ``channel`` | channels | ``FrozenMap`` | EM over the query's candidates (``model.emcl.em``) |
| ``hub`` | rows of a query bank | one coordinate with the item's number | cosine less the item's number |
| ``paired`` | labelled pairs | coordinates in shared bases | cosine mixed with the bases' cosine |
| ``paired+hub`` | both | both | both |

A ``Correction`` is what a generation of an index applies; it is stored with it and never changes. Items are the rows of
an index, of segments (``videos``) or of ``captions``; queries are compared with them by inner product:

    item   [ base row, h, sqrt(1 - h²) ]     all of norm sqrt(2)
    query  [ base row, -a, 0 ]               so that the product is the score less a times the item's number

The base row is the unit row, under the published map or with paired bases beside it. Corrections are between texts and
videos: a video that looks for videos is compared by cosine. The numbers of the rerank are those of its own score, of
text-conditioned pooling: stage 1's cost 6.6 points of R@1 there (docs/method.md).

Shape suffixes: N items, Q queries, C candidates, D channels, M coordinates of an index row, K bases, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import PoolingConfig
from model.durable import load_arrays, save_arrays
from model.emcl import hub
from model.emcl.em import FrozenMap
from model.emcl.hub import HubBases
from model.emcl.paired import Modality, PairedBases
from model.emcl.pairwise_scores import score_all_pairs
from model.emcl.pooling import pool_stored_videos

Floats = NDArray[np.float32]
Side = Literal["videos", "captions"]
Order = Literal["rerank", "stage1"]
Mode = Literal["off", "reference", "channel", "hub", "paired", "paired+hub"]

MODALITY: dict[Side, Modality] = {"videos": "video", "captions": "text"}
_POOLED_ELEMENTS = 1 << 24  # pooled vectors of all bases at once: 64 MiB
_SETTINGS = ("hub_strength", "hub_bases", "order", "record", "fingerprint")


@dataclass(frozen=True, kw_only=True, eq=False)
class CorrectionSettings:
    """What `emcl calibrate` and `emcl index bases` decide: how strongly hubs are corrected, and the paired bases.

    ``order`` says what ``rerank: emcl`` ranks by: the rerank, or stage 1 with the rerank for the moment alone.
    ``record`` is what is known of the choice, as JSON; empty for the defaults. ``fingerprint`` is that of the model
    whose features they were chosen on; empty where that does not matter.
    """

    hub_strength: float = hub.STRENGTH
    hub_bases: int = hub.BASES
    paired: PairedBases | None = None
    order: Order = "rerank"
    record: str = ""
    fingerprint: str = ""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As NumPy arrays; the inverse of ``from_arrays``."""
        arrays = {name: np.array(getattr(self, name)) for name in _SETTINGS}
        return arrays | (_named("paired", self.paired.to_arrays()) if self.paired else {})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CorrectionSettings:
        """Rebuild from ``to_arrays``. Raises ``ValueError`` if something is missing."""
        try:
            paired = _part(arrays, "paired")
            return cls(
                hub_strength=float(arrays["hub_strength"]),
                hub_bases=int(arrays["hub_bases"]),
                paired=PairedBases.from_arrays(paired) if paired else None,
                order="stage1" if str(arrays["order"]) == "stage1" else "rerank",
                record=str(arrays["record"]),
                fingerprint=str(arrays["fingerprint"]),
            )
        except KeyError as error:
            raise ValueError(f"the settings of the correction lack {error}; run `emcl calibrate` again") from error


def save_settings(path: Path, settings: CorrectionSettings) -> None:
    """Write settings to a file of their own, atomically."""
    save_arrays(path, settings.to_arrays())


def load_settings(path: Path) -> CorrectionSettings | None:
    """Read what ``save_settings`` wrote; None without a file. Raises ``ValueError`` for a damaged one."""
    arrays = load_arrays(path)
    return None if arrays is None else CorrectionSettings.from_arrays(arrays)


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """What a generation applies to rows and scores.

    ``hubs`` holds the bases that correct the items of a side: those of a bank of texts for ``videos``, of a bank of
    videos for ``captions``. ``pooling`` is the model's.
    """

    frozen: FrozenMap
    paired: PairedBases | None = None
    hubs: Mapping[Side, HubBases] = field(default_factory=dict)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    order: Order = "rerank"

    @classmethod
    def fit(
        cls,
        frozen: FrozenMap,
        settings: CorrectionSettings,
        *,
        banks: Mapping[Side, tuple[NDArray[Any], str]],
        pooling: PoolingConfig,
    ) -> Correction:
        """Fit the hub bases on raw rows of ``banks``, each with its origin: texts for ``videos``, and so on.

        A published map with a strength excludes the others: statistics belong to the score that is ranked.
        """
        if frozen.strength:
            return cls(frozen=frozen, pooling=pooling)
        paired = settings.paired if settings.paired is not None and settings.paired.weight else None
        found = cls(frozen=frozen, paired=paired, pooling=pooling, order=settings.order)
        hubs: dict[Side, HubBases] = {}
        for side, (rows_ND, source) in banks.items() if settings.hub_strength else ():
            asking: Modality = "text" if side == "videos" else "video"
            bases = HubBases.fit(
                found.base_rows(rows_ND, asking),
                bases=settings.hub_bases,
                strength=settings.hub_strength,
                source=source,
            )
            norm = float(np.linalg.norm(np.asarray(rows_ND, np.float64), axis=1).mean())
            hubs[side] = HubBases(**{**vars(bases), "norm": norm})
        return cls(frozen=frozen, paired=paired, hubs=hubs, pooling=pooling, order=settings.order)

    @property
    def mode(self) -> Mode:
        """What corrects; ``off`` if nothing does."""
        if self.frozen.strength:
            return "reference" if self.frozen.mode == "reference" else "channel"
        if self.paired is not None:
            return "paired+hub" if self.hubs else "paired"
        return "hub" if self.hubs else "off"

    @property
    def strength(self) -> float:
        """β of the published map, the weight of hubs (a), or that of paired bases (w) where there are no hubs."""
        if self.hubs:
            return next(iter(self.hubs.values())).strength
        return self.frozen.strength if self.paired is None else self.paired.weight

    @property
    def has_own_pass(self) -> bool:
        """Whether the rerank corrects by hub or paired bases, instead of the published pass."""
        return self.paired is not None or bool(self.hubs)

    def width(self, side: Side, dim: int) -> int:
        """M: coordinates of a row in the index of a side."""
        shared = 0 if self.paired is None else len(self.paired.correlations_K)
        return dim + shared + (2 if side in self.hubs else 0)

    def base_rows(self, rows_ND: NDArray[Any], modality: Modality) -> Floats:
        """Rows without the coordinates for hubs: (N, D) or (N, D + K), of unit norm."""
        rows = torch.from_numpy(np.array(rows_ND, dtype=np.float32))
        with torch.inference_mode():
            mapped_ND: Floats = self.frozen.apply(rows).numpy()
        if self.paired is None:
            return mapped_ND
        share = self.paired.mixture
        shared_NK = np.sqrt(share) * self.paired.rows(rows_ND, modality)
        joined: Floats = (np.concatenate([mapped_ND, shared_NK], axis=1) / np.sqrt(1 + share)).astype(np.float32)
        return joined

    def items(self, rows_ND: NDArray[Any], side: Side) -> Floats:
        """Rows of the index of a side (N, M) from raw ones: a row's number does not depend on the other rows."""
        base_NM = self.base_rows(rows_ND, MODALITY[side])
        if side not in self.hubs:
            return base_NM
        numbers_N = np.clip(self.hubs[side].numbers(base_NM), -1, 1)
        return np.concatenate([base_NM, numbers_N[:, None], np.sqrt(1 - numbers_N**2)[:, None]], axis=1)

    def queries(self, rows_QD: NDArray[Any], modality: Modality, against: Side, *, hubs: bool = True) -> Floats:
        """Rows (Q, M) that the items of a side are compared with; ``hubs`` False leaves their numbers out."""
        if MODALITY[against] == modality and self.paired is not None:
            with torch.inference_mode():
                rows_QD = self.frozen.apply(torch.from_numpy(np.array(rows_QD, dtype=np.float32))).numpy()
            shared = len(self.paired.correlations_K)
            base_QM = np.pad(rows_QD * np.float32(np.sqrt(1 + self.paired.mixture)), ((0, 0), (0, shared)))
        else:
            base_QM = self.base_rows(rows_QD, modality)
        if against not in self.hubs:
            return base_QM
        strength = self.hubs[against].strength if hubs and MODALITY[against] != modality else 0.0
        tail_Q2 = np.tile(np.array([-strength, 0], np.float32), (len(base_QM), 1))
        return np.concatenate([base_QM, tail_Q2], axis=1)

    def mix(self, text_QCD: Tensor, video_QCD: Tensor, cosines_QC: Tensor) -> Tensor:
        """Scores (Q, C) of pairs of raw rows, which broadcast: their cosines, mixed with those of the paired bases."""
        if self.paired is None:
            return cosines_QC
        text = self.paired_rows(text_QCD, "text")
        shared_QC = (text * self.paired_rows(video_QCD, "video")).sum(dim=-1)
        return (cosines_QC + self.paired.mixture * shared_QC) / (1 + self.paired.mixture)

    def paired_rows(self, rows: Tensor, modality: Modality) -> Tensor:
        """``PairedBases.rows`` of rows (..., D) on their device, in float32."""
        assert self.paired is not None, "only asked with paired bases"
        mean_D, map_DK = self.paired.side(modality)
        weighed = torch.from_numpy(map_DK * self.paired.gains).to(rows)
        unit = torch.nn.functional.normalize(rows.float(), dim=-1)
        # The mean is mapped apart: (x - m) W = x W - m W, so that no copy of the rows is made.
        return torch.nn.functional.normalize(unit @ weighed - torch.from_numpy(mean_D).to(rows) @ weighed, dim=-1)

    def numbers_of_segments(self, features_NFD: NDArray[Any], mask_NF: NDArray[np.bool_]) -> Floats:
        """h (N,) of the rerank's score: each base pools the frames of a segment as a text does, and is compared."""

        bases = self.hubs["videos"]
        dim = features_NFD.shape[-1]
        queries_KD = torch.from_numpy((hub.unit(bases.means_KD[:, :dim]) * bases.norm).astype(np.float32))
        features = torch.from_numpy(np.require(features_NFD, requirements=["C", "W"]))
        mask = torch.from_numpy(np.require(mask_NF, requirements=["C", "W"]))
        if self.paired is None:
            cosines_KN = score_all_pairs(queries_KD, features, mask, self.pooling).numpy()
            return bases.of_scores(cosines_KN * np.linalg.norm(bases.means_KD, axis=1)[:, None])
        products_KN = np.empty((len(queries_KD), len(features)), np.float32)
        step = max(1, _POOLED_ELEMENTS // max(1, features.shape[1] * dim))
        with torch.inference_mode():
            for start in range(0, len(features), step):
                part = slice(start, start + step)
                wide, there = features[None, part].float(), mask[None, part]
                for k, query_D in enumerate(queries_KD):
                    pooled_1ND, _ = pool_stored_videos(query_D[None], wide, there, self.pooling)
                    products_KN[k, part] = self.base_rows(pooled_1ND[0].numpy(), "video") @ bases.means_KD[k]
        return bases.of_scores(products_KN)

    def numbers_of_captions(self, captions_CD: NDArray[Any]) -> Floats:
        """h (C,) of captions: a base is a video of one frame, so pooling leaves it as it is."""
        return self.hubs["captions"].numbers(self.base_rows(captions_CD, "text"))

    def text(self) -> str:
        """A description for people: which bases, fitted on what."""
        parts = []
        if self.paired is not None:
            parts.append(f"paired bases, {self.paired.pairs:,} pairs, weight {self.paired.weight:g}")
        if self.hubs:
            banks = " and ".join(bases.source for bases in self.hubs.values())
            strength = next(iter(self.hubs.values())).strength
            parts.append(f"hub bases, {banks}, strength {strength:g}")
        if parts and self.order == "stage1":
            parts.append("ranked by stage 1")
        return "; ".join(parts)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As NumPy arrays, for ``np.savez``; the inverse of ``from_arrays``. Without bases, those of the frozen map."""
        arrays = self.frozen.to_arrays()
        if not self.has_own_pass:
            return arrays
        arrays |= {"order": np.array(self.order), "pooling": np.array(self.pooling.model_dump_json())}
        if self.paired is not None:
            arrays |= _named("paired", self.paired.to_arrays())
        for side, bases in self.hubs.items():
            arrays |= _named(f"hubs/{side}", bases.to_arrays())
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Correction:
        """Rebuild from ``to_arrays``; arrays of a generation without bases are a frozen map alone."""
        sides: tuple[Side, ...] = ("videos", "captions")
        hubs = {side: HubBases.from_arrays(part) for side in sides if (part := _part(arrays, f"hubs/{side}"))}
        paired = _part(arrays, "paired")
        return cls(
            frozen=FrozenMap.from_arrays(arrays),
            paired=PairedBases.from_arrays(paired) if paired else None,
            hubs=hubs,
            pooling=PoolingConfig.model_validate_json(str(arrays["pooling"]))
            if "pooling" in arrays
            else PoolingConfig(),
            order="stage1" if "order" in arrays and str(arrays["order"]) == "stage1" else "rerank",
        )


def _named(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{name}": array for name, array in arrays.items()}


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{prefix}/"): arrays[name] for name in arrays if name.startswith(f"{prefix}/")}
