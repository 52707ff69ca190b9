"""From ranked candidates to the page of hits that was asked for, each with its moment.

Legend: C candidates, K hits of the page, F frames, D channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.search import ranking
from service.search.live_index import Generation
from service.search.ranking import Scored
from service.search.values import CaptionHit, FrameWeights, Hit, MomentHit, Ranking, UploadQuery

if TYPE_CHECKING:
    from indexer.library import Library
    from indexer.store.records import Segment
    from model.encoder import Encoder

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

MOST_MOMENTS = 20
"""Moments of one hit: a film of an hour in segments of 30 s has 120 candidates at most, too many to show."""

ALIKE = 0.95
"""Cosine of two pooled segments from which on they count as the same picture (``group: moment``)."""


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
    groups = _page(reader, ids_C[order], asked)
    if not groups:
        return ()
    columns = {int(ids_C[column]): column for column in order}
    chosen_K = np.array([columns[group[0]] for group in groups])
    shown = [number for group in groups for number in group[:MOST_MOMENTS]]
    segments = dict(zip(shown, reader.segments(shown), strict=True))

    def moments(group: list[int]) -> tuple[MomentHit, ...]:
        found = sorted((segments[number] for number in group[:MOST_MOMENTS]), key=lambda one: one.start_seconds)
        return tuple(
            MomentHit(
                start_seconds=one.start_seconds,
                end_seconds=one.end_seconds,
                score=float(scored.scores_QC[place, columns[one.segment_id]]),
            )
            for one in found
        )

    if scored.weights_QCF is None:
        weights_KF = ranking.segment_weights(encoder, reader, row_D, ids_C[chosen_K])
    else:
        weights_KF = scored.weights_QCF[place, chosen_K]
    confidences_K = reader.confidences(row_D, ids_C[chosen_K]) if is_text else None
    return tuple(
        hit_of(
            generation,
            segments[group[0]],
            score=float(scored.scores_QC[place, column]),
            stage1_score=float(scored.candidates.stage1_QC[place, column]),
            frames=FrameWeights.of(segments[group[0]].timestamps_seconds, weights_F),
            confidence=None if confidences_K is None else float(confidences_K[number]),
            moments=() if asked.group == "segment" else moments(group),
        )
        for number, (group, column, weights_F) in enumerate(zip(groups, chosen_K, weights_KF, strict=True))
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


def _page(reader: Library, ranked_ids: Ids, asked: Ranking) -> list[list[int]]:
    """The page of hits, each as the candidates that it stands for: its own segment first, the others best first."""
    ids = ranked_ids.tolist()
    if asked.group == "segment":
        return [[number] for number in ids[asked.offset : asked.offset + asked.k]]
    video_of = reader.videos_of(ids)
    groups: list[list[int]] = []
    of_video: dict[str, list[list[int]]] = {}
    alike = _alike(reader, ids, video_of) if asked.group == "moment" else None
    for number in ids:
        known = of_video.setdefault(video_of[number], [])
        same = next((group for group in known if alike is None or alike(group[0], number)), None)
        if same is not None:
            same.append(number)
        else:
            known.append([number])
            groups.append(known[-1])
    return groups[asked.offset : asked.offset + asked.k]


def _alike(reader: Library, ids: list[int], video_of: Mapping[int, str]) -> Callable[[int, int], bool]:
    """Whether two candidates of one video look alike."""
    counts = Counter(video_of[number] for number in ids)
    several = [number for number in ids if counts[video_of[number]] > 1]
    rows_ND = reader.segment_embeddings(np.array(several, dtype=np.int64)) if several else np.zeros((0, 1))
    units_ND = rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    unit_of = dict(zip(several, units_ND, strict=True))
    return lambda one, other: float(unit_of[one] @ unit_of[other]) >= ALIKE


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
    moments: tuple[MomentHit, ...] = (),
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
        moments=moments,
    )
