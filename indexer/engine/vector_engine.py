"""The interface of an external vector engine: collections, rows, filters. Independent of stores.

Legend: Q queries, w width of the shortlist, N rows, M coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from indexer.library import Wanted

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CollectionSpec:
    """A collection of vectors compared by inner product. ``index`` is a name of the engine's, or ``auto``."""

    name: str
    dim: int
    index: str
    map_digest: str


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """One row: the id that the catalogue gave it, what filters ask for, and its mapped vector (M,)."""

    id: int
    video_id: str
    seconds: float
    tags: tuple[str, ...]
    vector_M: Floats


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the engine says of a collection."""

    rows: int
    index: str
    dim: int
    map_digest: str


class VectorEngine(Protocol):
    """An engine. Calls raise ``EngineUnavailable`` if it cannot be reached or refuses."""

    url: str
    widest: int

    def expression(self, wanted: Wanted) -> str | None:
        """``wanted`` in the engine's language; None if the engine cannot say it."""
        ...

    def create(self, spec: CollectionSpec) -> None:
        """Make an empty collection."""
        ...

    def drop(self, name: str) -> None:
        """Remove a collection and its aliases."""
        ...

    def upsert(self, name: str, rows: Sequence[EngineRow]) -> None:
        """Write rows; those whose ids are there are replaced."""
        ...

    def delete(self, name: str, ids: Sequence[int]) -> None:
        """Remove rows by id; ids that are not there are ignored."""
        ...

    def ids_of_videos(self, name: str, video_ids: Sequence[str]) -> list[int]:
        """Ids of the rows of some videos, as of all acknowledged writes."""
        ...

    def settle(self, name: str) -> None:
        """Return when every query that begins from now on sees what was written before."""
        ...

    def shortlist(self, name: str, queries_QM: Floats, width: int, expression: str) -> Ids:
        """Ids ``(Q, width)`` of the nearest rows that match, best first as far as the engine's index knows; -1 pads."""
        ...

    def vectors(self, name: str, ids: Sequence[int]) -> dict[int, Floats]:
        """The vectors of rows by id, as of all acknowledged writes; rows that are not there are missing."""
        ...

    def switch(self, alias: str, name: str) -> None:
        """Let an alias name a collection, in one step."""
        ...

    def collections(self) -> list[str]:
        """The names of all collections."""
        ...

    def facts(self, name: str) -> EngineFacts:
        """What the engine knows of a collection, counted as of all acknowledged writes."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...
