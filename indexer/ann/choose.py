"""Which kind of index: from the number of vectors, the memory that it may take, and what has to be found.

    few vectors                            Flat: exact
    more, and they fit in memory           IVF,SQ8: one byte per channel, the lists nearest to the query
    more, and only small codes would fit   IVF,PQ fast-scan: half a byte for four channels

Every approximate kind is refined: its shortlist is ordered by exact scores of the vectors on the disk. A kind that does
not find enough (``indexer.store.build_index`` measures it) is followed by the next more exact one, up to Flat, which
finds all; a kind that does not fit in memory is left in its file and mapped. An index never finds less than was asked
for.

Legend: N vectors, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
"""The factory that lets the program choose again at every publication."""

DEFAULT_MEMORY = 4 << 30
DEFAULT_RECALL = 0.98

ID_BYTES = 8
_GRAIN = 4  # channels of one quantiser of four bits


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """``flat_bytes``: vectors of so many bytes in all are scanned in about 10 ms by one core, and need no other index.

    ``training_rows``: points for each list when lists are learned, 39 at least.
    """

    flat_bytes: int = 128 << 20
    training_rows: int = 64


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A kind of index to try. ``largest_refine`` bounds the shortlist, as a multiple of the neighbours wanted."""

    factory: str
    bytes_per_vector: float
    mapped: bool
    lists: int = 0
    largest_refine: float = 0.0
    training_rows: int = 0
    options: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether it finds all there is to find, and needs no tuning."""
        return self.factory == "Flat"


def candidates(count: int, dim: int, memory_bytes: int, bounds: Bounds | None = None) -> list[Candidate]:
    """The kinds to try for N = ``count``, the preferred one first, each more exact than the one before."""
    bounds = bounds or Bounds()
    exact = _kind("Flat", 4.0 * dim, count, memory_bytes)
    if count * 4 * dim <= bounds.flat_bytes:
        return [exact]
    kinds = [
        _kind("SQ8", 1.0 * dim, count, memory_bytes, largest_refine=4.0, training_rows=bounds.training_rows * 1024),
        _kind("SQfp16", 2.0 * dim, count, memory_bytes, largest_refine=2.0),
        exact,
    ]
    lists = lists_for(count, bounds.training_rows)
    if lists < 2:
        return kinds
    shared = {"lists": lists, "training_rows": lists * bounds.training_rows}
    overhead = ID_BYTES + 4.0 * dim * lists / count
    scalar = _kind(f"IVF{lists},SQ8", dim + overhead, count, memory_bytes, largest_refine=4.0, **shared)
    kinds.insert(0, scalar)
    parts = dim // _GRAIN
    if scalar.mapped and dim % _GRAIN == 0 and count >= 16 * bounds.training_rows:
        name = f"IVF{lists},PQ{parts}x4fs"
        product = _kind(name, parts / 2 + overhead, count, memory_bytes, largest_refine=32.0, **shared)
        if not product.mapped:  # FAISS cannot map these codes, so they must fit
            kinds.insert(0, product)
    return kinds


def lists_for(count: int, training_rows: int) -> int:
    """Inverted lists for N vectors: the power of two next to 4·√N, as far as there are rows to learn them from."""
    wanted = 1
    while wanted * wanted * 2 < 16 * count:
        wanted *= 2
    while wanted > 1 and wanted * training_rows > count:
        wanted //= 2
    return wanted


def _kind(
    factory: str,
    bytes_per_vector: float,
    count: int,
    memory_bytes: int,
    *,
    lists: int = 0,
    largest_refine: float = 0.0,
    training_rows: int = 0,
) -> Candidate:
    return Candidate(
        factory=factory,
        bytes_per_vector=bytes_per_vector,
        mapped=count * bytes_per_vector > memory_bytes,
        lists=lists,
        largest_refine=largest_refine,
        training_rows=training_rows,
    )
