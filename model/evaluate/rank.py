"""Ways of ranking encoded videos and captions: stage 1, reranking per query, and the reference's blocks.

In: a loaded model and an encoded corpus. Out: score matrices, float32, in which each query's best has the highest.
Reranking is what the service does: a query's candidates come from stage 1 (pooled vectors under the frozen EMCL map),
are in order of id, and are scored by text-conditioned pooling and the EM pass over that query alone. Items
that are not candidates have -inf; ``fill_behind`` ranks them after the candidates, in stage-1 order.

As in the index, frame features of searched videos are rounded to fp16; pooled vectors, captions and the query are not.

Shape suffixes: T captions, V videos, Q queries, N items, C candidates, F frames, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.arrays import row_blocks, unit_rows
from model.emcl.correction import Correction
from model.emcl.pairwise_scores import score_all_pairs
from model.encoder import Scorer
from model.evaluate.corpus import Corpus, Floats
from model.evaluate.hubness import DUAL_SOFTMAX_TEMPERATURE, dual_softmax
from model.evaluate.metrics import matrix_blocks
from model.net import Rerank

Scores = NDArray[np.floating[Any]]

REFERENCE_BLOCK = 32  # texts and videos of one block of the released evaluation (reference §2.7)
_QUERIES_AT_ONCE = 64
_GATHER_ELEMENTS = 1 << 25  # frame features gathered at once: 128 MiB in float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """Scores of all pairs for one way of ranking; each query's best has the highest; non-candidates have -inf."""

    text_to_video_TV: Scores
    video_to_text_VT: Scores


class StageOne:
    """Cosines of pooled vectors and captions, under a frozen EMCL map or as they are."""

    def __init__(self, encoder: Scorer, corpus: Corpus, *, frozen_map: bool) -> None:
        """Fit the map on the corpus's videos and captions, as in an index."""
        pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
        self._encoder = encoder
        self._map = encoder.fit_frozen_map(np.concatenate([pooled_VD, corpus.text_TD])) if frozen_map else None
        self._videos_VD = self._rows(pooled_VD)
        self._texts_TD = self._rows(corpus.text_TD)

    def score_videos(self, features_BFD: Floats, mask_BF: NDArray[np.bool_]) -> Floats:
        """Score the frame features of any videos against the captions: (B, T)."""
        return self._rows(self._encoder.pool(features_BFD, mask_BF)) @ self._texts_TD.T

    def score(self, query_QD: Floats) -> Floats:
        """Score any raw texts (Q, D) against the videos: (Q, V)."""
        return self._rows(query_QD) @ self._videos_VD.T

    def _rows(self, rows_ND: Floats) -> Floats:
        return unit_rows(rows_ND) if self._map is None else self._encoder.map_rows(self._map, rows_ND)


def stage_one(encoder: Scorer, corpus: Corpus, *, frozen_map: bool) -> Ranked:
    """Rank by cosines of pooled vectors and captions, under the frozen map fitted on all of them or as they are."""
    similarity_TV = StageOne(encoder, corpus, frozen_map=frozen_map).score(corpus.text_TD)
    return Ranked(text_to_video_TV=similarity_TV, video_to_text_VT=similarity_TV.T)


def rank_by_map(encoder: Scorer, corpus: Corpus, query_QD: Floats) -> Scores:
    """Stage 1 for any texts (Q, V): the frozen map is that of the corpus's videos and captions, as in an index."""
    return StageOne(encoder, corpus, frozen_map=True).score(query_QD)


def rerank(encoder: Scorer, corpus: Corpus, first: Ranked, *, candidates: int, how: Rerank) -> Ranked:
    """Rerank the best ``candidates`` of stage 1 for every query; the rest is -inf."""
    return Ranked(
        text_to_video_TV=rerank_videos(
            encoder, corpus, corpus.text_TD, first.text_to_video_TV, candidates=candidates, how=how
        ),
        video_to_text_VT=rerank_captions(encoder, corpus, first.video_to_text_VT, candidates=candidates, how=how),
    )


def rank_corrected(
    encoder: Scorer, corpus: Corpus, correction: Correction, *, candidates: int
) -> tuple[Ranked, Ranked]:
    """Rank as the service does over an index that applies ``correction``: the reranking, and stage 1 before it."""
    pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
    text_TD = corpus.text_TD
    first = Ranked(
        text_to_video_TV=correction.queries(text_TD, "text", "videos") @ correction.items(pooled_VD, "videos").T,
        video_to_text_VT=correction.queries(pooled_VD, "video", "captions") @ correction.items(text_TD, "captions").T,
    )
    if correction.order == "stage1":
        return first, first
    videos_TV = rerank_videos(
        encoder, corpus, text_TD, first.text_to_video_TV, candidates=candidates, how="emcl", correction=correction
    )
    texts_VT = rerank_captions(
        encoder, corpus, first.video_to_text_VT, candidates=candidates, how="emcl", correction=correction
    )
    return Ranked(text_to_video_TV=videos_TV, video_to_text_VT=texts_VT), first


def rerank_videos(
    encoder: Scorer,
    corpus: Corpus,
    query_QD: Floats,
    first_QV: Scores,
    *,
    candidates: int,
    how: Rerank,
    correction: Correction | None = None,
) -> Scores:
    """Rerank the best ``candidates`` videos of stage 1 for any texts (Q, V); the rest is -inf."""
    stored_VFD = corpus.features_VFD.astype(np.float16)
    hubs = correction.hubs.get("videos") if correction is not None and how == "emcl" else None
    if how == "none" and candidates >= first_QV.shape[1]:
        return pool_and_score(encoder, query_QD, stored_VFD, corpus.mask_VF)
    scores_QV = np.full(first_QV.shape, -np.inf, np.float32)
    frames = stored_VFD.shape[1] * stored_VFD.shape[2]
    for rows in _turns(len(query_QD), min(candidates, first_QV.shape[1]) * frames):
        ids_QC = best_columns(first_QV[rows], candidates)
        scores = encoder.score_videos(
            query_QD[rows], stored_VFD[ids_QC], corpus.mask_VF[ids_QC], None, how, correction=correction
        )
        np.put_along_axis(scores_QV[rows], ids_QC, scores.scores_QN, axis=1)
    if hubs is not None and correction is not None:
        scores_QV -= np.float32(hubs.strength) * correction.numbers_of_segments(stored_VFD, corpus.mask_VF)
    return scores_QV


def rerank_captions(
    encoder: Scorer,
    corpus: Corpus,
    first_VT: Scores,
    *,
    candidates: int,
    how: Rerank,
    correction: Correction | None = None,
) -> Scores:
    """Rerank the best ``candidates`` captions of stage 1 for the videos of a corpus (V, T); the rest is -inf."""
    hubs = correction.hubs.get("captions") if correction is not None and how == "emcl" else None
    if how == "none" and candidates >= first_VT.shape[1]:
        return pool_and_score(encoder, corpus.text_TD, corpus.features_VFD, corpus.mask_VF).T
    scores_VT = np.full(first_VT.shape, -np.inf, np.float32)
    for rows in _turns(len(first_VT), min(candidates, first_VT.shape[1]) * corpus.text_TD.shape[1]):
        ids_VC = best_columns(first_VT[rows], candidates)
        scores = encoder.score_captions(
            corpus.features_VFD[rows], corpus.mask_VF[rows], corpus.text_TD[ids_VC], None, how, correction=correction
        )
        np.put_along_axis(scores_VT[rows], ids_VC, scores.scores_QN, axis=1)
    if hubs is not None and correction is not None:
        scores_VT -= np.float32(hubs.strength) * correction.numbers_of_captions(corpus.text_TD)
    return scores_VT


def pool_and_score(encoder: Scorer, text_TD: Floats, features_VFD: NDArray[Any], mask_VF: NDArray[np.bool_]) -> Floats:
    """Cosines (T, V) after text-conditioned pooling, without the EM pass, of all pairs; see ``score_all_pairs``."""
    text = torch.from_numpy(np.ascontiguousarray(text_TD)).to(encoder.device)
    features, mask = torch.from_numpy(features_VFD), torch.from_numpy(mask_VF)
    return score_all_pairs(text, features, mask, encoder.config.pooling).numpy()


@torch.inference_mode()
def score_in_blocks(encoder: Scorer, corpus: Corpus, text_TD: Floats, *, block: int = REFERENCE_BLOCK) -> Floats:
    """Cosines (T, V) as the released evaluation computes them: an EM pass for every ``block`` texts x videos.

    The last blocks of a row and a column are smaller; the EM state is frozen. Mask and temperature of the pooling are
    the checkpoint's. A score depends on who shares the block.
    """
    text = torch.from_numpy(np.ascontiguousarray(text_TD)).to(encoder.device)
    features = torch.from_numpy(corpus.features_VFD).to(encoder.device)
    mask = torch.from_numpy(corpus.mask_VF).to(encoder.device)
    scores_TV = np.empty((len(text), len(features)), np.float32)
    for t in range(0, len(text), block):
        for v in range(0, len(features), block):
            part = encoder.net.score_matrix(text[t : t + block], features[v : v + block], mask[v : v + block])
            scores_TV[t : t + block, v : v + block] = part.float().cpu().numpy()
    return scores_TV


def fill_behind(reranked: Ranked, first: Ranked) -> Ranked:
    """Rank items that are not candidates (-inf) after the candidates, in stage-1 order."""
    return Ranked(
        text_to_video_TV=fill_scores(reranked.text_to_video_TV, first.text_to_video_TV),
        video_to_text_VT=fill_scores(reranked.video_to_text_VT, first.video_to_text_VT),
    )


def fill_scores(scores_QN: Scores, behind_QN: Scores) -> NDArray[np.float64]:
    """One direction of ``fill_behind``, for all queries or some of them."""
    finite_QN = np.isfinite(scores_QN)
    filled_QN = scores_QN.astype(np.float64)
    lowest_Q1 = np.where(finite_QN, filled_QN, np.inf).min(axis=1, keepdims=True)
    return np.where(finite_QN, filled_QN, behind_QN - 2.0 + np.minimum(lowest_Q1, -1.0))


def fill_floor(scores_QN: Scores) -> Scores:
    """Give other items the lowest score among their query's candidates: they would hardly have scored higher."""
    finite_QN = np.isfinite(scores_QN)
    lowest_Q1 = np.where(finite_QN, scores_QN, np.inf).min(axis=1, keepdims=True)
    return np.where(finite_QN, scores_QN, lowest_Q1)


def with_dual_softmax(ranked: Ranked, temperature: float = DUAL_SOFTMAX_TEMPERATURE) -> Ranked:
    """Weigh both directions by the softmax over all queries (transductive)."""
    return Ranked(
        text_to_video_TV=dual_softmax(ranked.text_to_video_TV, temperature),
        video_to_text_VT=dual_softmax(ranked.video_to_text_VT, temperature),
    )


def best_columns(scores_QN: Scores, count: int) -> NDArray[np.intp]:
    """Return the columns of each query's ``count`` best, ascending, which is the order of the ids.

    Of equals at the edge the first are taken.
    """
    queries, items = scores_QN.shape
    if count >= items:
        return np.tile(np.arange(items), (queries, 1))
    chosen = np.empty((queries, count), np.intp)
    for rows in matrix_blocks(scores_QN.shape):
        block_QN = scores_QN[rows]
        edge_Q1 = np.partition(block_QN, items - count, axis=1)[:, items - count, None]
        above_QN, at_edge_QN = block_QN > edge_Q1, block_QN == edge_Q1
        room_Q1 = count - np.count_nonzero(above_QN, axis=1)[:, None]
        taken_QN = above_QN | (at_edge_QN & (np.cumsum(at_edge_QN, axis=1) <= room_Q1))
        chosen[rows] = np.nonzero(taken_QN)[1].reshape(-1, count)
    return chosen


def _turns(queries: int, elements_per_query: int) -> Iterator[slice]:
    """Queries in turns, which bounds the memory of the features gathered for them."""
    return row_blocks((queries, elements_per_query), _GATHER_ELEMENTS, max_rows=_QUERIES_AT_ONCE)
