"""``frames``: EMCL-Net. Each text pools each video's frames; the EM pass sees all pooled pairs and the texts.

Shape suffixes: T texts, V videos, F frames, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PoolingConfig
from model.emcl.pooling import frame_logits, frame_weights
from model.heads.base import Head, HeadKind


@dataclass(frozen=True, kw_only=True, eq=False)
class FramesBatch:
    """Raw frame features with a mask, raw texts. ``pairs_TVD`` holds pooled pairs once the EM pass has replaced them.

    ``reference`` has T·V + T rows for T texts and V videos, so memory is T·V·D.
    """

    features_VFD: Tensor
    mask_VF: Tensor
    text_TD: Tensor
    pairs_TVD: Tensor | None = None

    @property
    def texts(self) -> int:
        """T."""
        return len(self.text_TD)

    @property
    def videos(self) -> int:
        """V."""
        return len(self.features_VFD)

    def take(self, texts: Tensor, videos: Tensor) -> Self:
        """Return these texts and videos."""
        pairs = None if self.pairs_TVD is None else self.pairs_TVD[texts][:, videos]
        return replace(
            self,
            features_VFD=self.features_VFD[videos],
            mask_VF=self.mask_VF[videos],
            text_TD=self.text_TD[texts],
            pairs_TVD=pairs,
        )


class FramesHead(Head[FramesBatch]):
    """Text-conditioned pooling, cosine (reference §2.3)."""

    kind: ClassVar[HeadKind] = "frames"

    def __init__(self, pooling: PoolingConfig) -> None:
        super().__init__()
        self.pooling = pooling

    def _pairs(self, batch: FramesBatch) -> Tensor:
        if batch.pairs_TVD is not None:
            return batch.pairs_TVD
        logits_TVF = torch.einsum("td,vfd->tvf", batch.text_TD, batch.features_VFD)
        if self.pooling.unit_scale is not None:
            text_norms, frame_norms = batch.text_TD.norm(dim=-1)[:, None, None], batch.features_VFD.norm(dim=-1)[None]
            logits_TVF = frame_logits(logits_TVF, text_norms, frame_norms, self.pooling)
        weights_TVF = frame_weights(logits_TVF, batch.mask_VF[None].expand_as(logits_TVF), self.pooling)
        return torch.einsum("tvf,vfd->tvd", weights_TVF, batch.features_VFD)

    def rows(self, batch: FramesBatch) -> Tensor:
        """Return (T·V + T, D): pooled videos text by text, then the texts."""
        return torch.cat([self._pairs(batch).flatten(0, 1), batch.text_TD])

    def replace(self, batch: FramesBatch, rows: Tensor) -> FramesBatch:
        """Put corrected rows in the place of the pooled pairs and the texts."""
        pairs = batch.texts * batch.videos
        pairs_TVD = rows[:pairs].view(batch.texts, batch.videos, -1)
        return replace(batch, pairs_TVD=pairs_TVD, text_TD=rows[pairs:])

    def similarity(self, batch: FramesBatch) -> Tensor:
        """Return the cosine of each text and the video as that text pools it."""
        pairs_TVD, text_TD = F.normalize(self._pairs(batch), dim=-1), F.normalize(batch.text_TD, dim=-1)
        return torch.bmm(pairs_TVD, text_TD[..., None])[..., 0]
