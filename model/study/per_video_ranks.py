"""What a ranking does for each video: the common currency of ``emcl calibrate``, ``emcl sweep`` and ``emcl report``.

In: an encoded corpus and one way of ranking it. Out: for every video the reciprocal rank of its match and whether it
came first, once with its captions as queries (averaged over them) and once with itself as the query. All that is
compared is compared video by video, see ``model.study.significance``.

Shape suffixes: T captions, V videos, W the two ways (0 text to video, 1 video to text).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.arrays import unit_rows
from model.config import EMCLConfig
from model.emcl.diagnostics import diagnose
from model.encoder import Encoder
from model.evaluate.metrics import ranks_of_matches
from model.evaluate.rank import best_columns
from model.evaluate.run import Corpus, Ranked, fill_behind, rerank, stage_one, with_dual_softmax, with_emcl
from model.net import Rerank

Floats = NDArray[np.float64]

_PASSES = 32

WAYS = ("text → video", "video → text")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """0-based ranks of the matches, ties averaged: of every caption's video, and of every video's best caption."""

    text_to_video_T: Floats
    video_to_text_V: Floats
    video_of_text_T: NDArray[np.intp]

    def per_video(self) -> VideoRanks:
        """Average over the captions of each video."""
        return VideoRanks(
            reciprocal_VW=self._by_video(1 / (self.text_to_video_T + 1), 1 / (self.video_to_text_V + 1)),
            first_VW=self._by_video(self.text_to_video_T <= 0, self.video_to_text_V <= 0),
        )

    def _by_video(self, of_texts_T: NDArray[Any], of_videos_V: NDArray[Any]) -> Floats:
        sums_V = np.bincount(self.video_of_text_T, weights=of_texts_T, minlength=len(of_videos_V))
        counts_V = np.bincount(self.video_of_text_T, minlength=len(of_videos_V))
        return np.stack([sums_V / counts_V, of_videos_V.astype(np.float64)], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoRanks:
    """``reciprocal_VW``: mean reciprocal rank, 0 to 1. ``first_VW``: share of queries whose match came first."""

    reciprocal_VW: Floats
    first_VW: Floats

    @property
    def reciprocal_ranks(self) -> Floats:
        """Both ways together, each with half the weight: what settings are chosen by."""
        means_V: Floats = self.reciprocal_VW.mean(axis=1)
        return means_V

    @property
    def mean_reciprocal(self) -> float:
        """The mean reciprocal rank over both ways and all videos."""
        return float(self.reciprocal_VW.mean())

    def take(self, rows_V: NDArray[np.bool_]) -> VideoRanks:
        """Only some videos."""
        return replace(self, reciprocal_VW=self.reciprocal_VW[rows_V], first_VW=self.first_VW[rows_V])


def variant(encoder: Encoder, config: EMCLConfig) -> Encoder:
    """Return the same model with other EMCL settings.

    The checkpoint's own state, which training may have moved, stays where the settings do not decide its making:
    strength, kernel width and iterations. Another mode, number of bases or seed starts from a new state.
    """
    own = encoder.config.emcl
    other = with_emcl(encoder, config)
    if keeps_state(own, config):
        other.net.emcl.load_state_dict(encoder.net.emcl.state_dict())
    return other


def keeps_state(own: EMCLConfig, other: EMCLConfig) -> bool:
    """Whether a state made under ``own`` is one of ``other`` as well; if not, the fingerprint changes with it."""
    return (own.mode, own.num_bases, own.seed) == (other.mode, other.num_bases, other.seed)


def ranking(
    encoder: Encoder,
    corpus: Corpus,
    *,
    candidates: int,
    how: Rerank = "emcl",
    dual_softmax_temperature: float | None = None,
) -> Ranked:
    """Rank every caption and every video as the service does, best candidates first, the rest behind.

    ``how="none"`` is the ranking without EMCL, in stage 1 as well. A temperature adds dual softmax (transductive).
    """
    if how == "none":
        encoder = with_emcl(encoder, EMCLConfig(beta=0.0))
    first = stage_one(encoder, corpus, frozen_map=how == "emcl")
    reranked = rerank(encoder, corpus, first, candidates=candidates, how=how)
    if dual_softmax_temperature is not None:
        reranked = with_dual_softmax(reranked, dual_softmax_temperature)
    return fill_behind(reranked, first)


def ranks_of(ranked: Ranked, corpus: Corpus) -> Ranks:
    """Ranks of the matches. Of several captions of a video the best counts (reference §4.2)."""
    owners_T = corpus.video_of_text_T
    starts = np.flatnonzero(np.diff(owners_T, prepend=-1))  # captions of a video are consecutive
    by_video_VV = np.maximum.reduceat(ranked.video_to_text_VT, starts, axis=1)
    return Ranks(
        text_to_video_T=ranks_of_matches(ranked.text_to_video_TV, owners_T),
        video_to_text_V=ranks_of_matches(by_video_VV),
        video_of_text_T=owners_T,
    )


def video_ranks_of(
    encoder: Encoder,
    corpus: Corpus,
    config: EMCLConfig | None,
    *,
    candidates: int,
    dual_softmax_temperature: float | None = None,
) -> VideoRanks:
    """Rank with EMCL settings, or without EMCL (``None``; so is ``beta`` 0), and return what became of each video."""
    return ranks_under(
        encoder, corpus, config, candidates=candidates, dual_softmax_temperature=dual_softmax_temperature
    ).per_video()


def ranks_under(
    encoder: Encoder,
    corpus: Corpus,
    config: EMCLConfig | None,
    *,
    candidates: int,
    dual_softmax_temperature: float | None = None,
) -> Ranks:
    """The same, as the ranks of the matches."""
    without = config is None or config.beta == 0
    ranked = ranking(
        encoder if config is None or without else variant(encoder, config),
        corpus,
        candidates=candidates,
        how="none" if without else "emcl",
        dual_softmax_temperature=dual_softmax_temperature,
    )
    return ranks_of(ranked, corpus)


def correction_size(encoder: Encoder, corpus: Corpus, config: EMCLConfig | None, *, candidates: int) -> float:
    """Mean norm of what the pass of a query adds to a row, over the mean norm of the rows: 0.01 is 1 % of a feature.

    Of the passes of at most ``_PASSES`` captions spread evenly, over their candidates as stage 1 pools them.
    """
    if config is None or config.beta == 0:
        return 0.0
    emcl = variant(encoder, config).net.emcl
    pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
    taken = np.unique(np.linspace(0, len(corpus.text_TD) - 1, _PASSES).astype(int))
    text_QD = corpus.text_TD[taken]
    best_QC = best_columns(unit_rows(text_QD) @ unit_rows(pooled_VD).T, candidates)
    sizes = []
    for text_D, best_C in zip(text_QD, best_QC, strict=True):
        rows_ND = torch.from_numpy(np.concatenate([pooled_VD[best_C], text_D[None]])).to(encoder.device)
        sizes.append(diagnose(emcl, rows_ND).correction_ratio)
    return float(np.mean(sizes))


def describe(config: EMCLConfig | None) -> str:
    """A setting in a table: ``channel β 0.1 σ 0.3 K 8 T 3``."""
    if config is None or config.beta == 0:
        return "without EMCL"
    return (
        f"{config.mode} β {config.beta:g} σ {config.sigma:g} K {config.num_bases} T {config.iterations}"
        f"{f' seed {config.seed}' if config.seed else ''}"
    )
