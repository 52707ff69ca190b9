"""Protocols of evaluation: which ways of ranking are measured, and what in them differs from the released one.

* ``per-query``: as the service ranks. Candidates from stage 1, then one EM pass per query over them alone. A score does
  not depend on the other queries.
* ``reference``: as the released evaluation does. Blocks of 32 texts x 32 videos, an EM pass for each; a score depends
  on who shares the block, so that shuffling a set changes its figures.
* ``frozen``: stage 1 alone, under the frozen EMCL map.

Shape suffixes: T captions, V videos, Q queries, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.config import EMCLConfig
from model.encoder import Scorer
from model.evaluate.corpus import Corpus, Floats, emcl_variants, with_emcl
from model.evaluate.rank import (
    Ranked,
    Scores,
    StageOne,
    fill_floor,
    pool_and_score,
    rerank,
    rerank_captions,
    rerank_videos,
    score_in_blocks,
)

Protocol = Literal["per-query", "reference", "frozen"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


ScoreVideos = Callable[[Floats, NDArray[np.bool_]], Scores]
"""Scores frame features (B, F, D) of any videos, with their mask, against the captions: (B, T), as ``score_texts``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """One way of ranking, measured. ``behind`` orders items that are not candidates; None where everything was scored.

    ``score_texts`` scores any texts (Q, D) against the videos, (Q, V), as the captions of the set were scored: what a
    query bank is compared by. Videos that are not candidates of a text get its candidates' lowest score.
    """

    name: str
    ranked: Ranked
    behind: Ranked | None
    score_texts: Callable[[Floats], Scores]
    score_videos: ScoreVideos


def ways_of(encoder: Scorer, corpus: Corpus, protocol: Protocol, *, candidates: int) -> Iterator[Way]:
    """Yield the ways of a protocol, one at a time, so that never more than one holds its matrices."""
    plain = StageOne(encoder, corpus, frozen_map=False)
    yield _symmetric("stage 1, no map", plain.score, plain.score_videos, corpus)
    if protocol == "reference":
        yield from _reference_ways(encoder, corpus)
    elif protocol == "frozen":
        for config in emcl_variants(encoder.config.emcl):
            stage = StageOne(with_emcl(encoder, config), corpus, frozen_map=True)
            yield _symmetric(f"stage 1, frozen map, {named(config)}", stage.score, stage.score_videos, corpus)
    else:
        yield from _per_query_ways(encoder, corpus, candidates)


def named(config: EMCLConfig) -> str:
    """What tables call an EMCL configuration."""
    return f"EMCL {config.mode}, beta {config.beta:g}"


def _reference_ways(encoder: Scorer, corpus: Corpus) -> Iterator[Way]:
    def without_emcl(text_QD: Floats) -> Scores:
        return pool_and_score(encoder, text_QD, corpus.features_VFD, corpus.mask_VF)

    yield _symmetric("pooling without EMCL", without_emcl, partial(_pooled_videos, encoder, corpus), corpus)
    for config in emcl_variants(encoder.config.emcl):
        yield _in_blocks(with_emcl(encoder, config), corpus)


def _in_blocks(encoder: Scorer, corpus: Corpus) -> Way:
    def score_videos(features_BFD: Floats, mask_BF: NDArray[np.bool_]) -> Scores:
        return score_in_blocks(encoder, _with_videos(corpus, features_BFD, mask_BF), corpus.text_TD).T

    return _symmetric(named(encoder.config.emcl), partial(score_in_blocks, encoder, corpus), score_videos, corpus)


def _pooled_videos(encoder: Scorer, corpus: Corpus, features_BFD: Floats, mask_BF: NDArray[np.bool_]) -> Scores:
    return pool_and_score(encoder, corpus.text_TD, features_BFD, mask_BF).T


def _with_videos(corpus: Corpus, features_BFD: Floats, mask_BF: NDArray[np.bool_]) -> Corpus:
    """The captions of a set with other videos."""
    return replace(corpus, features_VFD=features_BFD, mask_VF=mask_BF)


def _per_query_ways(encoder: Scorer, corpus: Corpus, candidates: int) -> Iterator[Way]:
    stage = StageOne(encoder, corpus, frozen_map=True)
    first = _symmetric("stage 1, frozen map", stage.score, stage.score_videos, corpus)
    yield first
    pooled = rerank(encoder, corpus, first.ranked, candidates=candidates, how="none")
    yield Way(
        name="pooling without EMCL",
        ranked=pooled,
        behind=first.ranked,
        score_texts=lambda text_QD: rerank_videos(
            encoder, corpus, text_QD, stage.score(text_QD), candidates=len(corpus.mask_VF), how="none"
        ),
        score_videos=partial(_pooled_videos, encoder, corpus),
    )
    del pooled, first  # their matrices are as large as those that come
    for config in emcl_variants(encoder.config.emcl):
        yield _em_per_query(with_emcl(encoder, config), corpus, candidates)


def _em_per_query(encoder: Scorer, corpus: Corpus, candidates: int) -> Way:
    stage = StageOne(encoder, corpus, frozen_map=True)
    similarity_TV = stage.score(corpus.text_TD)
    first = Ranked(text_to_video_TV=similarity_TV, video_to_text_VT=similarity_TV.T)

    def score_texts(text_QD: Floats) -> Scores:
        first_QV = stage.score(text_QD)
        return fill_floor(rerank_videos(encoder, corpus, text_QD, first_QV, candidates=candidates, how="emcl"))

    def score_videos(features_BFD: Floats, mask_BF: NDArray[np.bool_]) -> Scores:
        first_BT = stage.score_videos(features_BFD, mask_BF)
        others = _with_videos(corpus, features_BFD, mask_BF)
        return fill_floor(rerank_captions(encoder, others, first_BT, candidates=candidates, how="emcl"))

    return Way(
        name=named(encoder.config.emcl),
        ranked=rerank(encoder, corpus, first, candidates=candidates, how="emcl"),
        behind=first,
        score_texts=score_texts,
        score_videos=score_videos,
    )


def _symmetric(name: str, score_texts: Callable[[Floats], Scores], score_videos: ScoreVideos, corpus: Corpus) -> Way:
    """A way whose scores are the same in both directions."""
    scores_TV = score_texts(corpus.text_TD)
    ranked = Ranked(text_to_video_TV=scores_TV, video_to_text_VT=scores_TV.T)
    return Way(name=name, ranked=ranked, behind=None, score_texts=score_texts, score_videos=score_videos)
