"""The two stages on arrays: candidates from the index, and their scores by the model.

Candidates are kept in ascending order of id, padded with -1 at the end, so that nothing depends on the order in which
the index returned them. Scores that agree to ``SCORE_DIGITS`` decimals count as equal and are ordered by id: smaller
differences may come from floating-point sums in batches of another size.

Legend: Q queries, C candidates, F frames, D channels. All features are raw, as the encoder returns them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from indexer.library import EVERYTHING, Wanted
from model.arrays import row_blocks
from service.search.values import Rerank

if TYPE_CHECKING:
    from indexer.library import Library
    from model.encoder import Encoder

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

SCORE_DIGITS = 6
GATHER_ELEMENTS = 1 << 25  # frame features gathered at once, 128 MiB in float32; more queries are scored in turns


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """``ids_QC`` ascending, -1 where a query has fewer; ``stage1_QC`` their cosines in the index, -inf there."""

    ids_QC: Ids
    stage1_QC: Floats

    def of(self, *queries: int) -> Candidates:
        """Those of some queries."""
        return Candidates(ids_QC=self.ids_QC[[*queries]], stage1_QC=self.stage1_QC[[*queries]])


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Candidates with the scores they are ranked by; ``weights_QCF`` is absent if stage 1 alone ranked them."""

    candidates: Candidates
    scores_QC: Floats
    weights_QCF: Floats | None

    def best_first(self, query: int) -> NDArray[np.intp]:
        """Columns of one query's candidates, best first; equal scores in order of id; padding left out."""
        ids_C = self.candidates.ids_QC[query]
        rounded_C = np.round(self.scores_QC[query].astype(np.float64), SCORE_DIGITS)
        order: NDArray[np.intp] = np.lexsort((ids_C, -rounded_C))
        return np.asarray(order[ids_C[order] >= 0])


def sort_by_id(stage1_QC: Floats, ids_QC: Ids) -> Candidates:
    """Candidates in ascending order of id, whatever order they come in."""
    order = np.argsort(np.where(ids_QC < 0, np.iinfo(np.int64).max, ids_QC), axis=1, kind="stable")
    return Candidates(
        ids_QC=np.take_along_axis(ids_QC, order, axis=1), stage1_QC=np.take_along_axis(stage1_QC, order, axis=1)
    )


def find_segments(
    reader: Library, rows_QD: Floats, count: int, *, wanted: Wanted = EVERYTHING, left_out: Collection[int] = ()
) -> Candidates:
    """The ``count`` nearest segments of each mapped row, without those ``left_out`` (a query's own segments)."""
    held = reader.counts.segments
    width = max(1, min(count + len(left_out), held))
    stage1_QC, ids_QC = reader.search_videos(rows_QD, width, wanted)
    if left_out:
        own = np.isin(ids_QC, list(left_out))
        ids_QC, stage1_QC = np.where(own, -1, ids_QC), np.where(own, -np.inf, stage1_QC).astype(np.float32)
        order = np.argsort(own, axis=1, kind="stable")[:, :count]  # the others move up, in their order
        ids_QC, stage1_QC = np.take_along_axis(ids_QC, order, axis=1), np.take_along_axis(stage1_QC, order, axis=1)
    return sort_by_id(stage1_QC, ids_QC)


def find_further_videos(
    reader: Library,
    row_1D: Floats,
    candidates: Candidates,
    videos: int,
    *,
    wanted: Wanted = EVERYTHING,
    left_out: Collection[int] = (),
) -> Candidates:
    """One query's candidates, and the best segment of further videos until ``videos`` videos are there or none is left.

    A long video can take all candidates. Each round searches among the segments of the videos that were not found yet,
    for as many as are missing, then for twice as many, so the cost grows with what is missing alone.
    """
    ids, stage1 = candidates.ids_QC[0], candidates.stage1_QC[0]
    if len(ids) == 0 or ids[-1] < 0:  # the index has no more than these
        return candidates
    found = {segment.video_id for segment in reader.segments(ids)}
    pool = wanted.leaving_out(videos=found, segments=left_out)
    width = videos - len(found)
    while len(found) < videos and (left := reader.count_matching(pool)):
        scores_1K, ids_1K = reader.search_videos(row_1D, min(width, left), pool)
        there = ids_1K[0] >= 0
        best: dict[str, tuple[int, float]] = {}
        for segment, score in zip(reader.segments(ids_1K[0, there]), scores_1K[0, there].tolist(), strict=True):
            best.setdefault(segment.video_id, (segment.segment_id, score))
        if not best:
            break
        chosen = list(best.values())[: videos - len(found)]
        ids = np.append(ids, [number for number, _ in chosen])
        stage1 = np.append(stage1, np.array([score for _, score in chosen], dtype=np.float32))
        found |= best.keys()
        pool = pool.leaving_out(videos=best)
        width *= 2
    return sort_by_id(stage1[None], ids[None])


def find_captions(reader: Library, rows_QD: Floats, count: int) -> Candidates:
    """The ``count`` nearest captions of each mapped row."""
    width = max(1, min(count, reader.counts.captions))
    return sort_by_id(*reader.search_captions(rows_QD, width))


def score_segments(
    encoder: Encoder,
    reader: Library,
    queries_QD: Floats,
    candidates: Candidates,
    rerank: Rerank,
    *,
    corrects: bool = True,
    hubs: bool = True,
) -> Scored:
    """Score each query against its own candidate segments.

    ``corrects`` is False for queries that are videos: hub and paired bases are between texts and videos. ``hubs`` False
    leaves the hub bases out, where QB-Norm takes their place.
    """
    correction = reader.correction
    if rerank == "frozen" or (rerank == "emcl" and corrects and correction.order == "stage1"):
        return Scored(candidates=candidates, scores_QC=candidates.stage1_QC, weights_QCF=None)
    ids_QC = candidates.ids_QC
    own = correction if corrects else None
    how = rerank if corrects or not correction.has_own_pass else "none"
    parts: list[Any] = []
    for rows in _turns(reader, ids_QC):
        features_QCFD, mask_QCF = reader.stored_features(ids_QC[rows])
        parts.append(
            encoder.score_videos(queries_QD[rows], features_QCFD, mask_QCF, ids_QC[rows] >= 0, how, correction=own)
        )
    scores_QC = np.concatenate([part.scores_QN for part in parts])
    if rerank == "emcl" and corrects and hubs and "videos" in correction.hubs:
        scores_QC = scores_QC - np.float32(correction.hubs["videos"].strength) * reader.hub_numbers(ids_QC)
    return Scored(
        candidates=candidates,
        scores_QC=scores_QC,
        weights_QCF=_join([part.frame_weights_QNF for part in parts]),
    )


def score_captions(
    encoder: Encoder,
    reader: Library,
    features_QFD: Floats,
    mask_QF: NDArray[np.bool_],
    candidates: Candidates,
    rerank: Rerank,
) -> Scored:
    """Score each uploaded video against its own candidate captions."""
    correction = reader.correction
    if rerank == "frozen" or (rerank == "emcl" and correction.order == "stage1"):
        return Scored(candidates=candidates, scores_QC=candidates.stage1_QC, weights_QCF=None)
    ids_QC = candidates.ids_QC
    captions_QCD = reader.caption_embeddings(ids_QC)
    scores = encoder.score_captions(features_QFD, mask_QF, captions_QCD, ids_QC >= 0, rerank, correction=correction)
    scores_QC = scores.scores_QN
    if rerank == "emcl" and "captions" in correction.hubs:
        numbers_C = correction.numbers_of_captions(captions_QCD.reshape(-1, captions_QCD.shape[-1]))
        scores_QC = scores_QC - np.float32(correction.hubs["captions"].strength) * numbers_C.reshape(ids_QC.shape)
    return Scored(candidates=candidates, scores_QC=scores_QC, weights_QCF=scores.frame_weights_QNF)


def segment_weights(encoder: Encoder, reader: Library, query_D: Floats, ids_C: Ids) -> Floats:
    """Frame weights (C, F) of a few segments for one query; what ``frozen`` ranking does not compute on its way."""
    features_CFD, mask_CF = reader.segment_features(ids_C)
    scores = encoder.score_videos(query_D[None], features_CFD[None], mask_CF[None], None, "none")
    return np.asarray(scores.frame_weights_QNF[0])


def caption_weights(
    encoder: Encoder, reader: Library, features_FD: Floats, mask_F: NDArray[np.bool_], ids_C: Ids
) -> Floats:
    """Frame weights (C, F) of one uploaded video for a few captions."""
    captions_CD = reader.caption_embeddings(ids_C)
    scores = encoder.score_captions(features_FD[None], mask_F[None], captions_CD[None], None, "none")
    return np.asarray(scores.frame_weights_QNF[0])


def _turns(reader: Library, ids_QC: Ids) -> Iterator[slice]:
    manifest = reader.manifest
    return row_blocks((*ids_QC.shape, manifest.sampling.max_frames, manifest.dim), GATHER_ELEMENTS)


def _join(weights: list[Floats]) -> Floats:
    """Concatenate along Q weights whose number of frames may differ from turn to turn."""
    longest = max(part.shape[2] for part in weights)
    return np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, longest - part.shape[2]))) for part in weights])
