"""An empty or trained FAISS index from a recipe (factory string, search options), with errors that say what to do.

Options are those of FAISS (``nprobe=32``, ``efSearch=64``, saved inside the index) and one of ours: ``refine=4`` takes
four times as many neighbours as wanted and orders them by their exact scores (``indexer.ann.index``).
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from indexer.ann import gpu
from indexer.ann.choose import AUTO
from indexer.ann.flat import always_multiply
from indexer.errors import IndexFactoryError

Floats = npt.NDArray[np.float32]

TRAINING_ROWS_PER_CENTROID = 39
"""FAISS's own least number of training points for each centroid of a k-means."""

CAGRA = "CAGRA"
"""A factory of ours: a graph built on a GPU by cuVS, which a CPU can search too (``indexer.ann.gpu``)."""


class IndexRecipe(Protocol):
    """What kind of index to build (``indexer.ann.choose.Choice`` is one).

    ``factory`` is a FAISS factory string: ``Flat`` (exact), ``HNSW32``, ``IVF256,Flat``, ``IVF1024,PQ64`` …;
    ``options`` are search parameters, see above.
    """

    @property
    def factory(self) -> str:
        """The factory string."""
        ...

    @property
    def options(self) -> str:
        """Search parameters, empty for FAISS's own defaults."""
        ...


def split_options(options: str) -> tuple[str, float]:
    """The options that FAISS takes, and the factor of refinement (0: none). Raises ``IndexFactoryError``."""
    ours: list[str] = []
    theirs: list[str] = []
    for option in filter(None, options.split(",")):
        (ours if option.partition("=")[0].strip() == "refine" else theirs).append(option)
    if not ours:
        return options, 0.0
    try:
        factor = float(ours[-1].partition("=")[2])
    except ValueError:
        factor = 0.0
    if len(ours) > 1 or not 1 <= factor <= 1000:
        raise IndexFactoryError(
            f"the search options {options!r} ask for {','.join(ours)}, expected one factor from 1 to 1000: refine=4"
        )
    return ",".join(theirs), factor


def make(recipe: IndexRecipe, dim: int) -> Any:
    """An empty FAISS index. Raises ``IndexFactoryError`` if FAISS does not know the recipe for ``dim`` channels."""
    always_multiply()
    options, _ = split_options(recipe.options)
    try:
        index = faiss.index_factory(dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexFactoryError(
            f"FAISS cannot make an index {recipe.factory!r} for {dim} channels ({reason(error)}); "
            "examples: auto, Flat, HNSW32, 'IVF256,Flat', 'IVF1024,PQ64'"
        ) from error
    set_options(index, recipe.factory, options)
    return index


def check(recipe: IndexRecipe, dim: int) -> None:
    """Raise ``IndexFactoryError`` unless such an index can be made here, or will be chosen."""
    options, _ = split_options(recipe.options)
    if recipe.factory == CAGRA:
        set_options(gpu.empty_cagra(dim), CAGRA, options)
    elif recipe.factory != AUTO:
        make(recipe, dim)


def set_options(index: Any, factory: str, options: str) -> None:
    """Set FAISS's own search parameters. Raises ``IndexFactoryError``."""
    try:
        if options:
            faiss.ParameterSpace().set_index_parameters(index, options)
    except RuntimeError as error:
        raise IndexFactoryError(
            f"FAISS index {factory!r} does not take the search options {options!r} "
            f"({reason(error)}); examples: nprobe=32, efSearch=64, refine=4"
        ) from error


def reason(error: RuntimeError) -> str:
    """FAISS's message without the C++ source line before it."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error).strip(), flags=re.DOTALL).removeprefix("Error: ")


def train(index: Any, factory: str, train_rows: Floats) -> None:
    """Train the centroids and quantisers of an index. Raises ``IndexFactoryError`` if there are too few rows."""
    lists = getattr(faiss.extract_index_ivf(index), "nlist", 1) if "IVF" in factory else 1
    needed = lists * TRAINING_ROWS_PER_CENTROID
    if len(train_rows) < needed:
        raise IndexFactoryError(
            f"the index {factory!r} trains on at least {needed} vectors ({lists} lists), the store has "
            f"{len(train_rows)}; use fewer lists, or let the program choose: `emcl index rebuild --index auto`"
        )
    try:
        index.train(np.ascontiguousarray(train_rows, dtype=np.float32))
    except RuntimeError as error:
        raise IndexFactoryError(
            f"the index {factory!r} could not be trained on {len(train_rows)} vectors "
            f"({reason(error)}); use the exact index: `emcl index rebuild --index Flat`"
        ) from error
