"""``pooled``: one unit vector for a video, one for a text. CLIP4Clip with meanP, seqLSTM or seqTransf.

CLIP4Clip's similarity: frames through a temporal part (``model.temporal``), each L2-normalised, averaged over the real
ones, normalised again; cosine with the normalised text. The average of *unit* frames is not that of raw frames.

Where EMCL acts on CLIP4Clip is a choice, as no code was released: on the unit vectors, videos then texts.

Shape suffixes: T texts, V videos, F frames, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from model.heads.base import Head, HeadKind


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledBatch:
    """``video_VD`` and ``text_TD``: unit vectors, unless an EM pass has replaced them."""

    video_VD: Tensor
    text_TD: Tensor

    @property
    def texts(self) -> int:
        """T."""
        return len(self.text_TD)

    @property
    def videos(self) -> int:
        """V."""
        return len(self.video_VD)

    def take(self, texts: Tensor, videos: Tensor) -> Self:
        """Return these texts and videos."""
        return replace(self, video_VD=self.video_VD[videos], text_TD=self.text_TD[texts])


class PooledHead(Head[PooledBatch]):
    """Inner products of pooled vectors. ``renormalise`` brings corrected rows back to unit norm."""

    kind: ClassVar[HeadKind] = "pooled"

    def __init__(self, *, renormalise: bool = True) -> None:
        super().__init__()
        self.renormalise = renormalise

    def rows(self, batch: PooledBatch) -> Tensor:
        """Return (V + T, D): videos, then texts."""
        return torch.cat([batch.video_VD, batch.text_TD])

    def replace(self, batch: PooledBatch, rows: Tensor) -> PooledBatch:
        """Put corrected rows in the place of the vectors."""
        if self.renormalise:
            rows = F.normalize(rows, dim=-1)
        return PooledBatch(video_VD=rows[: batch.videos], text_TD=rows[batch.videos :])

    def similarity(self, batch: PooledBatch) -> Tensor:
        """Return ``t · v``."""
        return batch.text_TD @ batch.video_VD.T
