"""Rows of NumPy arrays: scaled to unit length, and cut into blocks that bound the memory of a computation."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST_NORM = 1e-12  # a zero row stays zero


def unit_rows(rows_ND: NDArray[Any]) -> NDArray[Any]:
    """Scale the last axis to Euclidean norm 1, in the dtype of the rows."""
    unit: NDArray[Any] = rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=-1, keepdims=True), _SMALLEST_NORM)
    return unit


def row_blocks(shape: tuple[int, ...], elements: int, *, max_rows: int | None = None) -> Iterator[slice]:
    """Cut axis 0 of an array of ``shape`` into blocks of at most ``elements`` elements, but of one row at least.

    No block has more than ``max_rows`` rows.
    """
    step = max(1, elements // max(1, prod(shape[1:])))
    if max_rows is not None:
        step = min(step, max_rows)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
