"""What a head is: rows for the EM pass from a baseline's features, and similarities from the rows that come back.

    similarity with EMCL = head.similarity(head.replace(batch, emcl(head.rows(batch))))

Kinds: ``pooled`` (CLIP4Clip), ``frames`` (EMCL-Net), ``tokens`` (DRL, which the paper calls DCR), ``experts`` (MMT),
``mixture`` (CLIP2Video), ``cross`` (CLIP4Clip's tightTransf). A batch holds T texts and V videos; similarities are on
the scale of cosines, without a logit scale.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Generic, Literal, Protocol, Self, TypeVar, get_args

from torch import Tensor, nn

from model.heads.losses import symmetric_info_nce

HeadKind = Literal["pooled", "frames", "tokens", "experts", "mixture", "cross"]
HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)

Correction = Callable[[Tensor], Tensor]
"""Corrects rows (N, D), or (M, N, D) for M experts, each set by its own pass: ``EMCL``, a ``FrozenMap``'s ``apply``."""


class HeadBatch(Protocol):
    """Features of T texts and V videos, as a head reads them."""

    @property
    def texts(self) -> int:
        """T, the number of texts."""
        ...

    @property
    def videos(self) -> int:
        """V, the number of videos."""
        ...

    def take(self, texts: Tensor, videos: Tensor) -> Self:
        """Return the batch of these texts and videos (indices, int64), in this order."""
        ...


B = TypeVar("B", bound=HeadBatch)


class Head(nn.Module, ABC, Generic[B]):
    """A baseline's scoring, with the place where EMCL acts."""

    kind: ClassVar[HeadKind]

    @abstractmethod
    def rows(self, batch: B) -> Tensor:
        """Return the rows that the EM pass corrects: (N, D), or (M, N, D) for experts, in a fixed order."""

    @abstractmethod
    def replace(self, batch: B, rows: Tensor) -> B:
        """Return the batch with its rows replaced by corrected ones, which are of any norm."""

    @abstractmethod
    def similarity(self, batch: B) -> Tensor:
        """Return similarities (T, V)."""

    def loss(self, similarity_BB: Tensor, log_scale: Tensor, known_BB: Tensor | None = None) -> Tensor:
        """Return the baseline's own loss of matched pairs; symmetric InfoNCE unless a head has another."""
        return symmetric_info_nce(similarity_BB, log_scale, known_BB)

    def corrected(self, batch: B, correct: Correction | None) -> B:
        """Return the batch after the EM pass over all its rows; as it is for ``None``."""
        return batch if correct is None else self.replace(batch, correct(self.rows(batch)))
