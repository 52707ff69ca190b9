"""Paired comparison of two rankings of the same videos: sign test, Holm's correction, bootstrap intervals.

In: one number for each unit (a video with its captions) or the difference of two. Out: p values and intervals. The unit
is the video and not the query, because a video and its captions are found or missed together: as separate observations
they would make every p value too small.

Shape suffixes: U units, R resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

RESAMPLES = 2000
CONFIDENCE = 0.95
DRAWS_AT_ONCE = 1 << 22  # bounds the memory of a bootstrap to 32 MiB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its bootstrap interval, all three in the unit of what was resampled."""

    mean: float
    low: float
    high: float

    def scaled(self, factor: float) -> Interval:
        """The same in another unit, such as percent."""
        return Interval(mean=self.mean * factor, low=self.low * factor, high=self.high * factor)

    def text(self, digits: int = 1, *, sign: bool = False) -> str:
        """``12.3 [11.0, 13.5]``; with ``sign`` a plus is written too."""
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        return f"{form.format(self.mean)} [{form.format(self.low)}, {form.format(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Units that are better and worse under the second ranking, and the two-sided p value of the sign test."""

    wins: int
    losses: int
    p: float


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided sign test: how often a fair coin splits as unevenly. Ties take no part; of none p is 1.

    For outcomes of 0 and 1 (found first or not) this is the exact McNemar test.
    """
    total = wins + losses
    if total == 0:
        return 1.0
    tail = ways = 1  # of k = 0; each binomial coefficient from the one before it
    for k in range(min(wins, losses)):
        ways = ways * (total - k) // (k + 1)
        tail += ways
    # Integers until the last step: 2**total overflows a float from 1024 on.
    return min(1.0, float(2 * tail / 2**total))


def compare(differences_U: Floats, *, tolerance: float = 1e-12) -> PairedTest:
    """Sign test of differences, positive ones being wins; those within ``tolerance`` of 0 are ties."""
    _check(differences_U)
    wins = int(np.sum(differences_U > tolerance))
    losses = int(np.sum(differences_U < -tolerance))
    return PairedTest(wins=wins, losses=losses, p=sign_test(wins, losses))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that hold for the whole family, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [0.0] * len(p_values), 0.0
    for done, index in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - done) * p_values[index]))
        corrected[index] = floor
    return corrected


def bootstrap(values_U: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean with its percentile bootstrap interval over units; the same seed gives the same interval.

    Of paired differences it is the paired bootstrap. Raises ``ValueError`` for no values or NaN.
    """
    _check(values_U)
    rng = np.random.default_rng(seed)
    means_R = np.empty(resamples)
    at_once = max(1, DRAWS_AT_ONCE // len(values_U))
    for start in range(0, resamples, at_once):
        part = means_R[start : start + at_once]
        part[:] = values_U[rng.integers(len(values_U), size=(len(part), len(values_U)))].mean(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means_R, [tail, 100 - tail])
    return Interval(mean=float(np.mean(values_U)), low=float(low), high=float(high))


def folds_of(units: int, folds: int, *, seed: int = 0) -> NDArray[np.intp]:
    """Return the fold of each unit (U,), drawn from the seed; sizes differ by one at most.

    Raises ``ValueError`` unless there are at least two folds with at least one unit each.
    """
    if not 2 <= folds <= units:
        raise ValueError(f"{folds} folds of {units} videos are not possible; expected 2 to {units}")
    return np.random.default_rng(seed).permutation(np.arange(units) % folds)


def _check(values_U: Floats) -> None:
    if values_U.ndim != 1 or len(values_U) == 0 or not np.isfinite(values_U).all():
        raise ValueError(f"expected at least one finite number for each video, got shape {values_U.shape}")
