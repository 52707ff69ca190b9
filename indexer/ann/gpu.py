"""FAISS on GPUs: an index cloned to each or sharded over all, and CAGRA graphs. Not run on a GPU yet.

Everything here is used only where ``available()`` says that this build of FAISS sees a GPU; ``faiss-cpu``, which the
project installs, sees none. A GPU orders a shortlist, by sums whose last bits depend on the batch; the answer is
ordered by exact scores of the vectors on the disk (``indexer.ann.index``), so that it does not. What a GPU cannot do
(filters, very long lists of neighbours) is searched on the CPU, in the index that was cloned.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any, Literal, Protocol, Self, TypeVar

import faiss
import numpy as np
import numpy.typing as npt

from indexer.ann.search import Restriction, Searcher, searcher_of
from indexer.errors import IndexFactoryError, StoreError

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "gpu"]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

MOST_NEIGHBOURS = 2048
"""FAISS's own limit of neighbours on a card."""

LEAST_REFINE = 1.25
"""A quarter more than wanted is taken from a card, so that exact scores decide who belongs to the best."""

SHARE_OF_A_CARD = 0.8
"""An index that would take more of the free memory of a card is spread over all of them."""

GRAPH_DEGREE, BUILD_DEGREE = 32, 64
"""Edges of a node of a CAGRA graph, and those that it is chosen from: cuVS's own defaults are 64 and 128."""


class OnCpu(Protocol):
    """What is moved to a card: ``indexer.ann.index.FaissIndex``, which is a layer above this module."""

    def __len__(self) -> int: ...

    @property
    def inner(self) -> Any:
        """The FAISS index itself."""
        ...

    def searched_by(self, searcher: Searcher, *, least_refine: float) -> Self:
        """The same vectors, searched by something else."""
        ...


Index = TypeVar("Index", bound=OnCpu)


def available() -> int:
    """How many cards this build of FAISS can use."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def has_cagra() -> bool:
    """Whether this build has CAGRA, and a card to use it on."""
    return available() > 0 and hasattr(faiss, "GpuIndexCagra")


def on_device(index: Index, device: Device) -> Index:
    """The index on the device that is wanted: ``auto`` takes cards where they can hold it, else the CPU.

    Raises ``StoreError`` if a card is wanted and there is none, or if it cannot hold this kind of index.
    """
    if device == "cpu" or len(index) == 0:
        return index
    cards = available()
    if cards == 0:
        if device == "gpu":
            raise StoreError(
                "the index is to be searched on a GPU (faiss_device gpu), but this build of FAISS "
                f"({faiss.__version__}) sees none; install faiss-gpu and check nvidia-smi, or use faiss_device auto"
            )
        return index
    try:
        searcher = GpuSearcher(cloned(index.inner, cards), searcher_of(index.inner))
    except RuntimeError as error:
        if device == "gpu":
            raise StoreError(
                f"an index of kind {type(index.inner).__name__} cannot be moved to the GPU ({error}); rebuild it with "
                "`emcl index rebuild --index Flat` or 'IVF4096,SQ8', or use faiss_device auto"
            ) from error
        logger.warning("the index stays on the CPU: %s", error)
        return index
    return index.searched_by(searcher, least_refine=LEAST_REFINE)


class GpuSearcher:
    """Searches on cards what they can search, and the rest on the CPU. One search at a time, as FAISS wants it."""

    def __init__(self, on_cards: Any, on_cpu: Searcher) -> None:
        self._on_cards = on_cards
        self._on_cpu = on_cpu
        self._lock = threading.Lock()

    def search(self, queries_QD: Floats, width: int, only: Restriction | None) -> tuple[Floats, Ids]:
        """See ``indexer.ann.search.Searcher``."""
        if only is not None or width > MOST_NEIGHBOURS:
            return self._on_cpu.search(queries_QD, width, only)
        with self._lock:
            scores_Qw, found_Qw = self._on_cards.search(queries_QD, width)
        return scores_Qw, found_Qw


def empty_cagra(dim: int) -> Any:
    """What a CAGRA graph is copied to, which a CPU can search and a file can hold.

    Raises ``IndexFactoryError`` where there is no card or no cuVS, and so no graph.
    """
    if not has_cagra():
        raise IndexFactoryError(
            f"the index CAGRA is built on a GPU by a FAISS with cuVS, this build ({faiss.__version__}) has "
            f"{available()} GPUs and {'a' if hasattr(faiss, 'GpuIndexCagra') else 'no'} CAGRA; install faiss-gpu-cuvs, "
            "or let the program choose: `emcl index rebuild --index auto`"
        )
    on_cpu = faiss.IndexHNSWCagra(dim, GRAPH_DEGREE // 2, faiss.METRIC_INNER_PRODUCT)
    on_cpu.base_level_only = False  # the upper levels find a start for a search on a CPU
    return on_cpu


def build_cagra(dim: int, blocks: Iterable[Floats]) -> Any:
    """A CAGRA graph over all rows. Raises ``IndexFactoryError`` as ``empty_cagra`` does."""
    on_cpu = empty_cagra(dim)
    config = faiss.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = GRAPH_DEGREE, BUILD_DEGREE
    on_card = faiss.GpuIndexCagra(faiss.StandardGpuResources(), dim, faiss.METRIC_INNER_PRODUCT, config)
    on_card.train(np.concatenate(list(blocks)))
    on_card.copyTo(on_cpu)
    return on_cpu


def cloned(index: Any, cards: int) -> Any:
    """A copy of an index on all cards, in shares if one card cannot hold it. Raises ``RuntimeError``."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexHNSWCagra):
        if not has_cagra():
            raise RuntimeError("this build of FAISS has no CAGRA")
        on_card = faiss.GpuIndexCagra(faiss.StandardGpuResources(), index.d, index.metric_type)
        on_card.copyFrom(index)
        return on_card
    options = faiss.GpuMultipleClonerOptions()
    options.shard = cards > 1 and _bytes_of(index) > SHARE_OF_A_CARD * _free_bytes()
    return faiss.index_cpu_to_all_gpus(index, co=options)


def _bytes_of(index: Any) -> int:
    if isinstance(index, faiss.IndexIVF):
        return int(index.ntotal) * int(index.code_size + 8)
    return int(index.ntotal) * int(index.sa_code_size())


def _free_bytes() -> int:
    import torch

    free, _ = torch.cuda.mem_get_info(0)
    return int(free)
