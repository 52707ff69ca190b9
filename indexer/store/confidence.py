"""How unusual a match is: scores of a query as probabilities, from what unrelated texts reach over the same library.

A cosine says little by itself: every model has a range of its own, and the best of 10,000 segments is near to any text.
So it is compared with texts that ship with the model (``background_texts``): how well does the best match of each
fit this very library? The confidence of a hit is the share of them whose best match fits less well, a conformal p-value
turned round: a text that is as unrelated as they are has a best hit above 0.95 in one of twenty cases, whatever the
model, the size of the library and the kind of index.

What is compared is not the cosine but

    t(q, v) = v · (q - b̄ / 4)        b̄: the mean of the background's rows; all rows of unit norm, as the index has them

which takes off a part of what the segment v gives to any text, as hub bases do: better than the cosine on every model
tried (docs/search.md). It is of stage 1, whatever ``rerank`` is, so that it costs one inner product for each hit.

``background.npz`` in the store holds the raw rows of the texts, encoded once for each model. ``confidence.npz`` in a
generation holds b̄ / 4, the rows b - b̄ / 4 and the best t of each over its segments; a view adds those that came later.
What was deleted since counts until the next generation.

Legend: n texts, N segments, K hits, D channels, M coordinates of a row without those of hubs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from indexer.store.vectors import BLOCK_ROWS, Side
from model.durable import load_arrays, save_arrays

if TYPE_CHECKING:
    from model.emcl.correction import Correction

Floats = npt.NDArray[np.float32]

BACKGROUND, CONFIDENCE = "background.npz", "confidence.npz"
LINE = 0.95
"""Hits below it count as weak: one in twenty unrelated texts has a hit above it."""

SHARE = 0.25
"""How much of the background's mean is taken off a query. More of it helps real models a little further, and lets more
meaningless texts pass with the demo model (docs/search.md).
"""


@runtime_checkable
class TextEncoder(Protocol):
    """A mapper that can also encode texts; not every one that publishes can."""

    fingerprint: str

    def encode_texts(self, texts: tuple[str, ...], /) -> Floats:
        """Raw text features (N, D)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Confidence:
    """``offset_M``: a quarter of the mean of the background's rows. ``asked_nM``: these less that. ``best_n``: the best
    t of each over the segments, -inf where there is none."""

    offset_M: Floats
    asked_nM: Floats
    best_n: Floats

    @cached_property
    def _ascending_n(self) -> Floats:
        return np.sort(self.best_n)

    def over(self, items_NM: Floats) -> Confidence:
        """The same over further segments (N, M)."""
        if len(items_NM) == 0:
            return self
        return replace(self, best_n=np.maximum(self.best_n, (self.asked_nM @ items_NM.T).max(axis=1)))

    def of(self, query_M: Floats, items_KM: Floats) -> Floats:
        """The confidence (K,) of hits in [0, 1) for a query; both are rows without the coordinates of hubs."""
        weaker_K = np.searchsorted(self._ascending_n, items_KM @ (query_M - self.offset_M), side="left")
        return np.asarray(weaker_K / (len(self.best_n) + 1), dtype=np.float32)


def background_rows(store: Path, mapper: object) -> Floats | None:
    """Raw rows (n, D) of the background's texts: those of the store, or encoded and kept there.

    None without rows of this model where ``mapper`` encodes no texts. A damaged file is replaced.
    """
    if not isinstance(mapper, TextEncoder):
        return None
    texts = background_texts()
    try:
        kept = load_arrays(store / BACKGROUND)
    except ValueError:
        kept = None
    named = {"fingerprint": mapper.fingerprint, "texts": "\n".join(texts)}
    if kept is not None and all(str(kept[name]) == value for name, value in named.items()):
        return kept["rows"]
    rows_nD = mapper.encode_texts(texts).astype(np.float32, copy=False)
    save_arrays(store / BACKGROUND, {"rows": rows_nD, **{name: np.array(value) for name, value in named.items()}})
    return rows_nD


def fit(queries_nM: Floats, items: Iterable[Floats], *, share: float = SHARE) -> Confidence:
    """Compare the background's rows with all segments, which come in blocks (N, M); ``share`` of b̄ is taken off."""
    offset_M = (share * queries_nM.mean(axis=0)).astype(np.float32)
    found = Confidence(
        offset_M=offset_M, asked_nM=queries_nM - offset_M, best_n=np.full(len(queries_nM), -np.inf, np.float32)
    )
    for items_NM in items:
        found = found.over(items_NM)
    return found


def base_blocks(correction: Correction, videos: Side) -> Iterator[Floats]:
    """All segments' rows without the coordinates of hubs."""
    for start in range(0, len(videos), BLOCK_ROWS):
        yield correction.base_rows(videos.raw(slice(start, start + BLOCK_ROWS)), "video")
        videos.reader.let_go()


def write(path: Path, confidence: Confidence) -> None:
    """Write what a generation keeps."""
    np.savez(path, offset=confidence.offset_M, asked=confidence.asked_nM, best=confidence.best_n)


def read(path: Path) -> Confidence:
    """What ``write`` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Confidence(offset_M=arrays["offset"], asked_nM=arrays["asked"], best_n=arrays["best"])


@cache
def everyday_and_nonsense() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """About 300 plain descriptions of everyday footage, and 80 texts of random letters, which mean nothing."""
    _, everyday, nonsense = (files("model") / "assets" / "background.txt").read_text(encoding="utf-8").split("# ")
    return tuple(everyday.splitlines()[1:]), tuple(nonsense.splitlines()[1:])


def background_texts() -> tuple[str, ...]:
    """All of them."""
    everyday, nonsense = everyday_and_nonsense()
    return everyday + nonsense
