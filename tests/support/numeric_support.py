"""How far rounding may move a number, on any processor and with any number of threads.

A test that compares numbers computed in two ways needs a tolerance, and what one machine happened to show is none:
another one adds in another order. Two ways to get one:

``tolerance`` is the a priori bound for a short computation: of its type, of how many terms are summed, and of its
condition; ``assert_equal_towers`` adds it up over the blocks of a transformer. ``rounding_spread`` measures a long one:
it repeats the computation in float64 with random rounding errors of the size of float32's put into every operation
(Monte Carlo arithmetic: Parker, Pierce and Eggert 2000), so that it follows the computation's own condition and not
what one library does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CONFIDENCE = 8
"""Sums of n terms err by less than 8 √n u, but for one time in 10^13 (Higham and Mary 2019, theorem 2.4: λ = 8)."""

MARGIN = 8
"""What the greatest of a few random experiments may be short of the worst that a processor does."""


def unit_roundoff(dtype: Any) -> float:
    """u, the relative error of one rounding: 2^-24 of float32."""
    info = torch.finfo(dtype) if isinstance(dtype, torch.dtype) else np.finfo(dtype)
    return float(info.eps) / 2


def tolerance(dtype: Any, terms: int, condition: float = 1.0) -> float:
    """Absolute error of what is computed in ``dtype`` with ``terms`` roundings in a row, in any order.

    ``condition`` is the sum of the terms' absolute values, times whatever is done to it afterwards: 1 for a cosine of
    unit vectors, whatever their dimension (``terms``). Compare two computed values with twice that.
    """
    return condition * min(terms, CONFIDENCE * math.sqrt(terms)) * unit_roundoff(dtype)


def assert_equal_towers(found: Any, expected: Any, *, width: int, blocks: int, dtype: Any = np.float32) -> None:
    """What a transformer gives, computed twice: each block adds four products of ``width`` terms in a row.

    Normalisation keeps what is multiplied as large as what comes out, which ``expected`` shows.
    """
    size = float(np.abs(np.asarray(expected)).max())
    most = 2 * 4 * blocks * tolerance(dtype, width, condition=size)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=most)


def assert_within_rounding(found: Any, expected: Any, in_double: Callable[[], Tensor]) -> None:
    """Both were computed in float32, by other code or in another order; ``in_double`` computes them in float64."""
    assert found.shape == expected.shape
    most = 2 * rounding_spread(in_double)
    np.testing.assert_allclose(torch.as_tensor(found).detach(), torch.as_tensor(expected), rtol=0, atol=most)


def score_tolerance(dim: int, products: int = 1, condition: float = 1.0) -> float:
    """How far two computed cosines of ``dim`` channels may differ, after ``products`` products of that length in a row.

    ``condition`` is what multiplies the error on its way: a logit scale, 1/sigma squared of a kernel, kappa of hubs.
    """
    return 2 * products * tolerance(np.float32, dim, condition)


def rounding_spread(compute: Callable[[], Tensor], dtype: torch.dtype = torch.float32, samples: int = 5) -> float:
    """How far rounding in ``dtype`` may move ``compute()``, which computes in float64; the largest over its elements.

    Other tensors than float64 ones are left alone, so that whatever the inputs hold is taken for exact.
    """
    exact = compute()
    assert exact.dtype == torch.float64, f"compute in float64, got {exact.dtype}"
    found = 0.0
    for seed in range(samples):
        with _RandomRounding(unit_roundoff(dtype), seed):
            found = max(found, float((compute() - exact).abs().max()))
    return MARGIN * found


_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
_SUMS = {"sum", "mean"}
_EXACT = {"clone", "copy_", "_to_copy", "neg", "abs", "max", "min", "amax", "amin", "cat", "zeros_like", "new_empty"}


class _RandomRounding(TorchDispatchMode):
    """Adds to every float64 result an error such as rounding makes, relative to what was summed, not to the sum."""

    def __init__(self, unit: float, seed: int) -> None:
        super().__init__()
        self._unit = unit
        self._chance = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        scale = self._scale(func, name, args, kwargs or {})  # before an operation in place changes what it takes
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float64 and not func.is_view and name not in _EXACT:
            size = out.abs() if scale is None else scale
            out += self._unit * size * torch.randn(out.shape, generator=self._chance, dtype=torch.float64)
        return out

    def _scale(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor | None:
        """Sum of the absolute values of what an operation adds up, times the growth with their number."""
        if name in _PRODUCTS and args[_PRODUCTS[name][0]].dtype == torch.float64:
            left, right = (args[place] for place in _PRODUCTS[name])
            return left.abs() @ right.abs() * math.sqrt(left.shape[-1])
        if name in _SUMS and args[0].dtype == torch.float64:
            total: Tensor = func(args[0].abs(), *args[1:], **kwargs)
            return total * math.sqrt(max(1, args[0].numel() / max(1, total.numel())))
        return None
