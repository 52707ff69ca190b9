"""Offline evaluation: exactly what the service does, for every caption and every video of a set, both directions.

In: a loaded model and videos with captions (or their features). Out: one row of metrics per way of ranking. A query's
candidates come from stage 1 (pooled vectors under the frozen EMCL map), stand in order of id, and are reranked by
text-conditioned pooling and the EM pass over that query alone. What is no candidate ranks after them, in stage-1 order.

As in the index, frame features of searched videos are rounded to fp16; pooled vectors, captions and the query are not.

Shape suffixes: T captions, V videos, Q queries, N items, C candidates, F frames, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model.config import EMCLConfig
from model.data.base import stack_clips
from model.data.clips import Clip, load_frames
from model.emcl import EMCL
from model.encoder import Encoder
from model.metrics import RetrievalMetrics, ranks_of_matches, retrieval_metrics
from model.net import Rerank
from model.similarity import dual_softmax

Floats = NDArray[np.float32]
Scores = NDArray[np.float64]

CANDIDATES = 100  # the service's default
_VIDEOS_AT_ONCE = 32
_QUERIES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Encoded videos and captions: raw features, not rounded. Caption t belongs to video ``video_of_text_T[t]``."""

    text_TD: Floats
    features_VFD: Floats
    mask_VF: NDArray[np.bool_]
    video_of_text_T: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """Scores of all pairs for one way of ranking; each query's best has the highest.

    ``text_to_video_TV`` and ``video_to_text_VT`` are cosines for candidates and lie below -2 for the rest.
    """

    text_to_video_TV: Scores
    video_to_text_VT: Scores


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ``transductive`` rankings need all queries at once, which a service never has."""

    name: str
    transductive: bool
    text_to_video: RetrievalMetrics
    video_to_text: RetrievalMetrics


def encode_corpus(encoder: Encoder, clips: Sequence[Clip], *, decode_threads: int = 2) -> Corpus:
    """Decode and encode whole videos and all their captions. Raises ``ValueError`` for a video that cannot be read."""
    load = partial(load_frames, image_size=encoder.image_size, sampling=encoder.config.sampling)
    longest = encoder.config.sampling.max_frames
    features = np.zeros((len(clips), longest, encoder.dim), np.float32)
    masks = np.zeros((len(clips), longest), bool)
    with ThreadPoolExecutor(decode_threads) as pool:
        decoded = tqdm(pool.map(load, clips), total=len(clips), desc="encode", unit="video")
        waiting: list[NDArray[np.uint8]] = []
        for number, frames in enumerate(decoded, start=1):
            waiting.append(frames)
            if len(waiting) == _VIDEOS_AT_ONCE or number == len(clips):
                stacked, mask = stack_clips(waiting)
                rows = slice(number - len(waiting), number)
                features[rows, : mask.shape[1]] = encoder.encode_videos(stacked, mask)
                masks[rows, : mask.shape[1]] = mask
                waiting = []
    return Corpus(
        text_TD=encoder.encode_texts([text for clip in clips for text in clip.captions]),
        features_VFD=features,
        mask_VF=masks,
        video_of_text_T=np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips]),
    )


def with_emcl(encoder: Encoder, config: EMCLConfig) -> Encoder:
    """Return the same model with another EMCL; its own state is kept if the configuration is its own."""
    if config == encoder.config.emcl:
        return encoder
    net = copy(encoder.net)
    # A module keeps its parts in this dictionary: without a copy of it the assignment would change both nets.
    net._modules = dict(encoder.net._modules)
    net.config = encoder.config.model_copy(update={"emcl": config})
    net.emcl = EMCL(encoder.dim, config).to(encoder.device)
    return Encoder(net, encoder.tokenizer, fingerprint=encoder.fingerprint, device=encoder.device)


def stage_one(encoder: Encoder, corpus: Corpus, *, frozen_map: bool) -> Ranked:
    """Rank by cosines of pooled vectors and captions, under the frozen map fitted on all of them or as they are."""
    if frozen_map:
        similarity_TV = rank_by_map(encoder, corpus, corpus.text_TD)
    else:
        pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
        similarity_TV = (_unit(corpus.text_TD) @ _unit(pooled_VD).T).astype(np.float64)
    return Ranked(text_to_video_TV=similarity_TV, video_to_text_VT=similarity_TV.T)


def rank_by_map(encoder: Encoder, corpus: Corpus, query_QD: Floats) -> Scores:
    """Stage 1 for any texts (Q, V): the frozen map is that of the corpus's videos and captions, as in an index."""
    pooled_VD = encoder.pool(corpus.features_VFD, corpus.mask_VF)
    frozen = encoder.fit_frozen_map(np.concatenate([pooled_VD, corpus.text_TD]))
    return (encoder.map_rows(frozen, query_QD) @ encoder.map_rows(frozen, pooled_VD).T).astype(np.float64)


def rerank(encoder: Encoder, corpus: Corpus, first: Ranked, *, candidates: int, how: Rerank) -> Ranked:
    """Rerank the best ``candidates`` of stage 1 for every query; the rest is -inf."""
    by_video_VC = _best(first.video_to_text_VT, candidates)
    texts = [
        encoder.score_captions(
            corpus.features_VFD[rows], corpus.mask_VF[rows], corpus.text_TD[ids_QC], None, how
        ).scores_QN
        for rows, ids_QC in _turns(by_video_VC)
    ]
    return Ranked(
        text_to_video_TV=rerank_videos(
            encoder, corpus, corpus.text_TD, first.text_to_video_TV, candidates=candidates, how=how
        ),
        video_to_text_VT=_spread(np.concatenate(texts), by_video_VC, first.video_to_text_VT.shape),
    )


def rerank_videos(
    encoder: Encoder, corpus: Corpus, query_QD: Floats, first_QV: Scores, *, candidates: int, how: Rerank
) -> Scores:
    """Rerank the best ``candidates`` videos of stage 1 for any texts (Q, V); the rest is -inf."""
    stored_VFD = corpus.features_VFD.astype(np.float16).astype(np.float32)
    best_QC = _best(first_QV, candidates)
    scores = [
        encoder.score_videos(query_QD[rows], stored_VFD[ids_QC], corpus.mask_VF[ids_QC], None, how).scores_QN
        for rows, ids_QC in _turns(best_QC)
    ]
    return _spread(np.concatenate(scores), best_QC, first_QV.shape)


def fill_behind(reranked: Ranked, first: Ranked) -> Ranked:
    """Put what was no candidate (-inf) behind the candidates, in stage-1 order."""
    return Ranked(
        text_to_video_TV=fill_scores(reranked.text_to_video_TV, first.text_to_video_TV),
        video_to_text_VT=fill_scores(reranked.video_to_text_VT, first.video_to_text_VT),
    )


def with_dual_softmax(ranked: Ranked) -> Ranked:
    """Weigh both directions by the softmax over all queries (transductive)."""
    return Ranked(
        text_to_video_TV=dual_softmax(ranked.text_to_video_TV), video_to_text_VT=dual_softmax(ranked.video_to_text_VT)
    )


def measure(name: str, ranked: Ranked, corpus: Corpus, *, transductive: bool = False) -> Row:
    """Compute both directions' metrics. Of several captions of a video the best counts (reference §4.2)."""
    owners_T = corpus.video_of_text_T
    starts = np.flatnonzero(np.diff(owners_T, prepend=-1))  # captions of a video stand together
    by_video_VV = np.maximum.reduceat(ranked.video_to_text_VT, starts, axis=1)
    return Row(
        name=name,
        transductive=transductive,
        text_to_video=retrieval_metrics(ranks_of_matches(ranked.text_to_video_TV, owners_T)),
        video_to_text=retrieval_metrics(ranks_of_matches(by_video_VV)),
    )


def evaluate_features(encoder: Encoder, corpus: Corpus, *, candidates: int = CANDIDATES) -> list[Row]:
    """Measure every way of ranking on encoded videos and captions; each once more with dual softmax."""
    plain, first = (stage_one(encoder, corpus, frozen_map=used) for used in (False, True))
    ways = [
        ("stage 1, no map", plain, plain),
        ("stage 1, frozen map", first, first),
        ("pooling without EMCL", rerank(encoder, corpus, first, candidates=candidates, how="none"), first),
    ]
    for config in emcl_variants(encoder.config.emcl):
        variant = with_emcl(encoder, config)
        own_first = stage_one(variant, corpus, frozen_map=True)
        scores = rerank(variant, corpus, own_first, candidates=candidates, how="emcl")
        ways.append((f"EMCL {config.mode}, beta {config.beta:g}", scores, own_first))
    rows = []
    for name, scores, behind in ways:
        rows.append(measure(name, fill_behind(scores, behind), corpus))
        dual = fill_behind(with_dual_softmax(scores), behind)
        rows.append(measure(f"{name} + dual softmax", dual, corpus, transductive=True))
    return rows


def emcl_variants(own: EMCLConfig) -> list[EMCLConfig]:
    """Return both modes: the checkpoint's own settings, and the other mode's usual ones."""
    if own.mode == "channel":
        return [own, EMCLConfig.reference()]
    return [EMCLConfig(), own]


def report(rows: Sequence[Row], **facts: Any) -> dict[str, Any]:
    """Return what ``emcl evaluate --json`` writes. One checkpoint is one training seed, and says so."""
    return {
        **facts,
        "training_seeds": 1,
        "rows": [
            {
                "name": row.name,
                "transductive": row.transductive,
                "text_to_video": row.text_to_video.as_dict(),
                "video_to_text": row.video_to_text.as_dict(),
            }
            for row in rows
        ],
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table: recall in percent with the standard error of R@1, ranks from 1."""
    ways = ("text → video", "video → text")
    head = ["ranking", *(f"{way} {name}" for way in ways for name in ("R@1", "R@5", "R@10", "MdR", "MnR"))]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [f"{row.name}{' (transductive)' if row.transductive else ''}"]
        for metrics in (row.text_to_video, row.video_to_text):
            cells.append(f"{metrics.recall[1]:.1f} ± {metrics.recall_errors[1]:.1f}")
            cells += [f"{metrics.recall[k]:.1f}" for k in (5, 10)]
            cells += [f"{metrics.median_rank:g}", f"{metrics.mean_rank:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _unit(rows_ND: Floats) -> Floats:
    unit: Floats = rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), np.float32(1e-30))
    return unit


def _best(scores_QN: Scores, count: int) -> NDArray[np.intp]:
    """Return the columns of each query's ``count`` best, in ascending order of column, which is that of the ids."""
    order_QN = np.argsort(-scores_QN, axis=1, kind="stable")
    return np.sort(order_QN[:, :count], axis=1)


def _turns(ids_QC: NDArray[np.intp]) -> Iterator[tuple[slice, NDArray[np.intp]]]:
    """Queries in turns, so that the gathered features of all of them never stand in memory at once."""
    for start in range(0, len(ids_QC), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        yield rows, ids_QC[rows]


def _spread(scores_QC: Floats, columns_QC: NDArray[np.intp], shape: tuple[int, ...]) -> Scores:
    spread = np.full(shape, -np.inf)
    np.put_along_axis(spread, columns_QC, scores_QC.astype(np.float64), axis=1)
    return spread


def fill_scores(scores_QN: Scores, behind_QN: Scores) -> Scores:
    """One direction of ``fill_behind``."""
    lowest = min(-1.0, float(scores_QN[np.isfinite(scores_QN)].min()))
    return np.where(np.isfinite(scores_QN), scores_QN, behind_QN - 2 + lowest)
