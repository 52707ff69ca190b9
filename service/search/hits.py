"""From ranked candidates to the page of hits that was asked for, each with its moment.

Legend: C candidates, K hits of the page, F frames, D channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.search import ranking
from service.search.live_index import Generation
from service.search.ranking import Scored
from service.search.values import CaptionHit, FrameWeights, Group, Hit, Ranking, UploadQuery

if TYPE_CHECKING:
    from indexer.library import Library
    from indexer.store.records import Segment
    from model.encoder import Encoder

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


def segment_hits(
    encoder: Encoder,
    generation: Generation,
    scored: Scored,
    place: int,
    row_D: Floats,
    asked: Ranking,
    *,
    is_text: bool,
    order: NDArray[np.intp] | None = None,
) -> tuple[Hit, ...]:
    """The page ``asked`` for of the query that stands at ``place`` in ``scored``; ``row_D`` is its raw row.

    Only hits of texts have a confidence. ``order`` are the columns of its candidates, best first, where that is not the
    order of scores.
    """
    reader, ids_C = generation.reader, scored.candidates.ids_QC[place]
    order = scored.best_first(place) if order is None else order
    page = _page(reader, ids_C[order], asked.offset, asked.k, asked.group)
    if not page:
        return ()
    columns = {int(ids_C[column]): column for column in order}
    chosen_K = np.array([columns[segment.segment_id] for segment in page])
    if scored.weights_QCF is None:
        weights_KF = ranking.segment_weights(encoder, reader, row_D, ids_C[chosen_K])
    else:
        weights_KF = scored.weights_QCF[place, chosen_K]
    confidences_K = reader.confidences(row_D, ids_C[chosen_K]) if is_text else None
    return tuple(
        hit_of(
            generation,
            segment,
            score=float(scored.scores_QC[place, column]),
            stage1_score=float(scored.candidates.stage1_QC[place, column]),
            frames=FrameWeights.of(segment.timestamps_seconds, weights_F),
            confidence=None if confidences_K is None else float(confidences_K[number]),
        )
        for number, (segment, column, weights_F) in enumerate(zip(page, chosen_K, weights_KF, strict=True))
    )


def caption_hits(
    encoder: Encoder,
    reader: Library,
    scored: Scored,
    upload: UploadQuery,
    features_FD: Floats,
    mask_F: NDArray[np.bool_],
) -> tuple[CaptionHit, ...]:
    """The page of captions for one upload, which ``scored`` holds alone."""
    asked = upload.ranking
    chosen_K = scored.best_first(0)[asked.offset : asked.offset + asked.k]
    if len(chosen_K) == 0:
        return ()
    ids_K = scored.candidates.ids_QC[0, chosen_K]
    if scored.weights_QCF is None:
        weights_KF = ranking.caption_weights(encoder, reader, features_FD, mask_F, ids_K)
    else:
        weights_KF = scored.weights_QCF[0, chosen_K]
    return tuple(
        CaptionHit(
            caption_id=caption.caption_id,
            text=caption.text,
            video_id=caption.video_id,
            score=float(scored.scores_QC[0, column]),
            stage1_score=float(scored.candidates.stage1_QC[0, column]),
            frames=FrameWeights.of(upload.timestamps_seconds, weights_F),
        )
        for caption, column, weights_F in zip(reader.captions(ids_K), chosen_K, weights_KF, strict=True)
    )


def _page(reader: Library, ranked_ids: Ids, offset: int, k: int, group: Group) -> list[Segment]:
    """Ranked segments number ``offset`` to ``offset + k``, counting only the first of each video if so grouped."""
    page: list[Segment] = []
    seen: set[str] = set()
    for start in range(0, len(ranked_ids), offset + k):
        for segment in reader.segments(ranked_ids[start : start + offset + k]):
            if group == "segment" or segment.video_id not in seen:
                seen.add(segment.video_id)
                page.append(segment)
        if len(page) >= offset + k:
            break
    return page[offset : offset + k]


def hit_of(
    generation: Generation,
    segment: Segment,
    *,
    score: float,
    stage1_score: float,
    frames: FrameWeights,
    confidence: float | None,
    matched: tuple[str, ...] = ("visual",),
    snippet: tuple[tuple[str, bool], ...] = (),
    passage: tuple[float, float] | None = None,
) -> Hit:
    """A hit of a segment, with the card of its video."""
    card = generation.card(segment.video_id)
    return Hit(
        video_id=segment.video_id,
        segment_id=segment.segment_id,
        segment=segment.number,
        start_seconds=segment.start_seconds,
        end_seconds=segment.end_seconds,
        score=score,
        stage1_score=stage1_score,
        frames=frames,
        title=card.title,
        path=card.path,
        duration_seconds=card.duration_seconds,
        tags=card.tags,
        confidence=confidence,
        matched=matched,
        snippet=snippet,
        passage=passage,
    )
