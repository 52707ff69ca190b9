"""Vectors that any process can make again, block by block; and how much of the true neighbours was found.

The distribution is a trained model's (``benchmarks.trained_vectors``); it is fitted once and handed on as a file. Rows
are then a function of their block's number alone, so that a million of them never lie in memory together, and a process
that checks an answer sees the very rows that another one indexed.

Legend: N rows, D channels, Q queries, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.trained_vectors import TrainedVectors, encode_clips, fit

Floats = npt.NDArray[np.float32]

BLOCK_ROWS = 16_384


def write_distribution(path: Path, *, clips: int, dim: int) -> None:
    """Fit the distribution on so many generated clips, in ``dim`` channels, and write it to ``path`` (``.npz``)."""
    np.savez(path, **fit(*encode_clips(clips), dim).to_arrays())  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorSet:
    """``count`` unit rows, and queries, which are captions of clips that are not among them."""

    count: int
    drawn_from: TrainedVectors

    @classmethod
    def read(cls, path: Path, count: int) -> VectorSet:
        """Of the distribution that ``write_distribution`` wrote."""
        with np.load(path) as arrays:
            return cls(count=count, drawn_from=TrainedVectors(**dict(arrays)))

    @property
    def dim(self) -> int:
        """D."""
        return int(self.drawn_from.videos_ED.shape[1])

    def blocks(self) -> Iterator[Floats]:
        """All rows, ``BLOCK_ROWS`` at a time, L2-normalised."""
        for number, start in enumerate(range(0, self.count, BLOCK_ROWS)):
            rng = np.random.default_rng((1, number))
            yield unit(self.drawn_from.draw(min(BLOCK_ROWS, self.count - start), rng)[0])

    def queries(self, count: int, part: int = 0) -> Floats:
        """``(count, D)`` unit rows; others for each ``part``."""
        return unit(self.drawn_from.draw(count, np.random.default_rng((2, part)))[1])


def any_rows(count: int, dim: int, seed: int = 0) -> Floats:
    """``(N, D)`` unit rows without structure: where every row is looked at, time does not depend on what they are."""
    return unit(np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32))


def unit(rows: Floats) -> Floats:
    """Rows of length 1."""
    scaled: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def recall(found_Qk: npt.NDArray[np.int64], true_Qk: npt.NDArray[np.int64]) -> float:
    """Share of the true neighbours that were found, whatever their order."""
    hits = [len(np.intersect1d(found, true)) for found, true in zip(found_Qk, true_Qk, strict=True)]
    return float(np.sum(hits) / true_Qk.size)


def same_first(found_Qk: npt.NDArray[np.int64], true_Qk: npt.NDArray[np.int64]) -> float:
    """Share of the queries whose first hit is the true one."""
    return float(np.mean(found_Qk[:, 0] == true_Qk[:, 0]))
