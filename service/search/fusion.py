"""The visual ranking and the ranking by words, fused: weighted reciprocal ranks (Cormack, Clarke and Büttcher 2009).

    score(video) = visual / (constant + its visual rank) + text · coverage² / (constant + its rank by words)

``coverage`` is the share of the query's words that the texts of a video have (``indexer.store.word_search``), each
counted by how rare it is: a caption that is the query counts in full, one with half of it a quarter. Without words that
match, the ranking is the visual one, untouched. Videos that only words find join the candidates before these are
scored, so that every hit has a visual score. Where a transcript fits best, the hit is the segment with that passage.

Legend: C candidates, M dimensions of the index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.errors import Conflict
from service.search.hits import hit_of
from service.search.ranking import Candidates, Scored, sort_by_id
from service.search.values import FrameWeights, Hit, Ranking, SearchQuery

if TYPE_CHECKING:
    from indexer.library import FoundByWords, Library, Wanted
    from service.search.live_index import Generation
    from service.settings import Settings

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

LEAST_COVERAGE = 0.5
"""Share of the query's words that a video's texts must have to be fused: less says too little of what it shows."""

FEWEST_BY_WORDS = 20
"""How many videos the ranking by words holds, at least, to be fused; more where a later page is asked for."""


@dataclass(frozen=True, kw_only=True)
class FusionWeights:
    """How much each ranking counts; ``constant`` dampens the difference between the first ranks."""

    visual: float = 1.0
    text: float = 1.0
    constant: float = 60.0

    @classmethod
    def from_settings(cls, settings: Settings) -> FusionWeights:
        """Those in the settings."""
        return cls(
            visual=settings.fusion_visual_weight,
            text=settings.fusion_text_weight,
            constant=settings.fusion_rank_constant,
        )


def find_words(reader: Library, query: SearchQuery, wanted: Wanted) -> list[FoundByWords]:
    """What the words of a query find to be fused; nothing for queries that are not to be, or without such words."""
    if query.ranking.fusion != "auto" or query.text is None:
        return []
    count = max(FEWEST_BY_WORDS, 2 * (query.ranking.offset + query.ranking.k))
    return reader.search_words(query.text, count, wanted, coverage=LEAST_COVERAGE)


def with_found(reader: Library, mapped_M: Floats, candidates: Candidates, found: Sequence[FoundByWords]) -> Candidates:
    """The candidates of one query, and of each video that words found and stage 1 did not its nearest segment.

    Of a video with a passage, the segment with it.
    """
    ids_C, stage1_C = candidates.ids_QC[0], candidates.stage1_QC[0]
    new_ids, new_scores = [], []
    meant = [
        [number for number, *_ in one.segments] if (own := one.segment_of_passage) is None else [own] for one in found
    ]
    known = set(ids_C.tolist())
    missing = [numbers for numbers in meant if known.isdisjoint(numbers)]
    if missing:
        ids = np.array([number for numbers in missing for number in numbers])
        scores = reader.correction.items(reader.segment_embeddings(ids), "videos") @ mapped_M
        start = 0
        for numbers in missing:
            stop = start + len(numbers)
            best = start + int(np.argmax(scores[start:stop]))
            new_ids.append(ids[best])
            new_scores.append(scores[best])
            start = stop
    if not new_ids:
        return candidates
    ids_1C = np.append(ids_C, np.array(new_ids, dtype=np.int64))[None]
    return sort_by_id(np.append(stage1_C, np.array(new_scores, dtype=np.float32))[None], ids_1C)


def fused_order(
    video_of: Mapping[int, str], scored: Scored, found: Sequence[FoundByWords], asked: Ranking, weights: FusionWeights
) -> NDArray[np.intp]:
    """Columns of the only query in ``scored``, best first by the fused score; ties in the visual order.

    ``video_of`` has the video of each segment among its candidates.
    """
    order = scored.best_first(0)
    ids_C = scored.candidates.ids_QC[0]
    by_words = {one.video_id: (rank, one) for rank, one in zip(_ranks(found), found, strict=True)}
    ranks: dict[str, int] = {}
    credited: set[str] = set()
    fused = np.zeros(len(order))
    for place, column in enumerate(order):
        video_id = video_of[int(ids_C[column])]
        ranks.setdefault(video_id, len(ranks) + 1)
        rank = ranks[video_id] if asked.group == "video" else place + 1
        fused[place] = weights.visual / (weights.constant + rank)
        if video_id in by_words and video_id not in credited:
            text_rank, one = by_words[video_id]
            if one.segment_of_passage not in (None, int(ids_C[column])):
                continue
            credited.add(video_id)
            fused[place] += weights.text * one.coverage**2 / (weights.constant + text_rank)
    return np.asarray(order[np.argsort(-fused, kind="stable")])


def text_hits(generation: Generation, query: SearchQuery, wanted: Wanted) -> tuple[Hit, ...]:
    """The page of hits of a query by its words alone: for each video its first segment, or that with the passage. No
    model is used.

    Raises ``Conflict`` for a store that cannot be searched by words yet.
    """
    reader, asked = generation.reader, query.ranking
    assert query.text is not None
    if not reader.has_words:
        raise Conflict(
            f"the store in {reader.path} was last written by a version without search by words",
            expected="a store with documents",
            next_step="run `emcl index build` on it once, or change anything in it over HTTP",
        )
    found = reader.search_words(query.text, asked.offset + asked.k, wanted)[asked.offset :]
    segments = reader.segments([one.segment_of_passage or one.segments[0][0] for one in found])
    hits = []
    for one, segment in zip(found, segments, strict=True):
        frames = len(segment.timestamps_seconds)
        even_F = np.full(frames, 1 / frames, dtype=np.float32)
        hits.append(
            hit_of(
                generation,
                segment,
                score=one.coverage,
                stage1_score=0.0,
                confidence=None,
                frames=FrameWeights.of(segment.timestamps_seconds, even_F),
                matched=one.kinds,
                snippet=one.snippet,
                passage=one.passage,
            )
        )
    return tuple(hits)


def _ranks(found: Sequence[FoundByWords]) -> list[int]:
    """Ranks from 1; equals share the first of theirs."""
    ranks: list[int] = []
    for place, one in enumerate(found):
        same = place > 0 and one.order[:2] == found[place - 1].order[:2]
        ranks.append(ranks[-1] if same else place + 1)
    return ranks
