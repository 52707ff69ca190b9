"""How often a FAISS index finds what an exact search finds.

The exact search is done blockwise over the stored vectors (as FAISS's own ``exhaustive_search`` does), without the
index that it judges. Queries are stored vectors of the other side: captions look for videos, videos for captions.

Legend: Q queries, N rows, D channels, k neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from indexer.store.reader import StoreReader
from indexer.store.vectors import BLOCK_ROWS

if TYPE_CHECKING:
    from model.emcl.correction import Side
    from model.emcl.paired import Modality

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

QUERIES = 200
DEPTH = 10
SCORE_TOLERANCE = 1e-5
"""A neighbour this close to the last that counts is a tie with it: rounding of float32 sums, not a miss."""


def measure_recall(reader: StoreReader, *, queries: int = QUERIES, depth: int = DEPTH) -> dict[str, float]:
    """Recall@``depth`` of both indexes, ``videos`` and ``captions``; a side without vectors is left out."""
    segments, captions = reader.segment_ids(), reader.caption_ids()
    recall = {}
    if len(segments):
        asked = _queries(reader, "text" if len(captions) else "video", "videos", queries)
        _, found = reader.search_videos(asked, min(depth, len(segments)))
        recall["videos"] = _recall(reader, asked, found, segments, "videos")
    if len(captions):
        asked = _queries(reader, "video" if len(segments) else "text", "captions", queries)
        _, found = reader.search_captions(asked, min(depth, len(captions)))
        recall["captions"] = _recall(reader, asked, found, captions, "captions")
    return recall


def _recall(reader: StoreReader, queries_QD: Floats, found_Qk: Ids, ids_N: Ids, side: Side) -> float:
    """Share of ``found_Qk`` whose exact score reaches that of the k-th exact neighbour."""
    depth = found_Qk.shape[1]
    best_Qk = np.full(found_Qk.shape, -np.inf, dtype=np.float32)
    scores_Qk = np.full(found_Qk.shape, -np.inf, dtype=np.float32)
    for start in range(0, len(ids_N), BLOCK_ROWS):
        ids = ids_N[start : start + BLOCK_ROWS]
        embed = reader.segment_embeddings if side == "videos" else reader.caption_embeddings
        block_QN = queries_QD @ reader.correction.items(embed(ids), side).T
        best_Qk = -np.sort(-np.concatenate([best_Qk, block_QN], axis=1), axis=1)[:, :depth]
        position = np.clip(np.searchsorted(ids, found_Qk), 0, len(ids) - 1)
        here = ids[position] == found_Qk
        scores_Qk[here] = np.take_along_axis(block_QN, position, axis=1)[here]
    return float(np.mean(scores_Qk >= best_Qk[:, -1:] - SCORE_TOLERANCE))


def _queries(reader: StoreReader, modality: Modality, against: Side, count: int) -> Floats:
    """Stored rows of a modality as queries of a side."""
    if modality == "text":
        rows_QD = reader.caption_embeddings(_sample(reader.caption_ids(), count))
    else:
        rows_QD = reader.segment_embeddings(_sample(reader.segment_ids(), count))
    return reader.correction.queries(rows_QD, modality, against)


def _sample(ids: Ids, count: int) -> Ids:
    return np.sort(np.random.default_rng(0).choice(ids, size=min(count, len(ids)), replace=False))
