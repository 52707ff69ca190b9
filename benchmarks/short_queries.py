"""What people type into the search box of the demo: "a red circle". How many of the first hits show one?

In: the scenes of a corpus and a loaded model. Out: precision of the first hits. Unlike a full caption, such a query has
many right answers, and it leans on two attributes alone: a model that mistakes shapes can still find full captions.

Shape suffixes: Q queries, V videos, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.demo.scene import SPLITS, Scene, make_scene
from model.encoder import Encoder
from model.evaluate.run import CANDIDATES, Corpus, Scores, fill_scores, rank_by_map, rerank_videos
from model.net import Rerank

PRECISION_AT = (1, 5)
_WAYS: tuple[tuple[str, Rerank], ...] = (("pooling without EMCL", "none"), ("EMCL", "emcl"))


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortQueries:
    """``relevant_QV`` is True where a video shows what the text asks for; every text has at least one such video."""

    texts: list[str]
    relevant_QV: NDArray[np.bool_]


def scene_of(name: str) -> Scene:
    """Return the scene that a name of ``clip_id`` stands for, such as ``test-0-000017``.

    Raises ``ValueError`` for any other name.
    """
    split, _, numbers = name.partition("-")
    seed, _, index = numbers.partition("-")
    if split not in SPLITS or not seed.isdecimal() or not index.isdecimal():
        raise ValueError(f"{name!r} names no clip of the demo corpus; those are named like test-0-000017")
    return make_scene(int(seed), split, int(index))


def shown_objects(scene: Scene) -> frozenset[tuple[str, str]]:
    """Return the (colour, shape) of all that is seen in a scene: main object, what it turns into, second object."""
    shown = {(scene.colour, scene.shape)}
    if scene.then_colour is not None:
        shown.add((scene.then_colour, scene.shape))
    if scene.second is not None:
        shown.add((scene.second.colour, scene.second.shape))
    return frozenset(shown)


def object_queries(scenes: Sequence[Scene]) -> ShortQueries:
    """Ask for every (colour, shape) that occurs in ``scenes``, in plain words."""
    shown = [shown_objects(scene) for scene in scenes]
    wanted = sorted(frozenset().union(*shown))
    return ShortQueries(
        texts=[f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}" for colour, shape in wanted],
        relevant_QV=np.array([[pair in objects for objects in shown] for pair in wanted]),
    )


def precision(scores_QV: Scores, relevant_QV: NDArray[np.bool_], k: int) -> float:
    """Return the percentage of right videos among the first k, averaged over queries.

    With fewer than k right videos in the corpus, only as many places count: a perfect ranking has 100.
    """
    order_QV = np.argsort(-scores_QV, axis=1, kind="stable")
    right_QV = np.take_along_axis(relevant_QV, order_QV, axis=1)
    places_Q = np.minimum(k, relevant_QV.sum(axis=1))
    counted_QV = np.arange(right_QV.shape[1]) < places_Q[:, None]
    return 100.0 * float(np.mean((right_QV & counted_QV).sum(axis=1) / places_Q))


def measure_short_queries(
    encoder: Encoder, corpus: Corpus, scenes: Sequence[Scene], *, candidates: int = CANDIDATES
) -> dict[str, dict[str, float]]:
    """Return precision (percent) of stage 1, of pooling without EMCL, and with the model's own EMCL.

    ``scenes`` are those of the corpus's videos, in its order. ``any`` is what a random ranking would have.
    """
    queries = object_queries(scenes)
    query_QD = encoder.encode_texts(queries.texts)
    first_QV = rank_by_map(encoder, corpus, query_QD)
    ways = {"stage 1, frozen map": first_QV}
    for name, how in _WAYS:
        reranked_QV = rerank_videos(encoder, corpus, query_QD, first_QV, candidates=candidates, how=how)
        ways[name] = fill_scores(reranked_QV, first_QV)
    figures = {
        name: {f"P@{k}": precision(scores_QV, queries.relevant_QV, k) for k in PRECISION_AT}
        for name, scores_QV in ways.items()
    }
    chance = 100.0 * float(queries.relevant_QV.mean())
    return {**figures, "any": {f"P@{k}": chance for k in PRECISION_AT}}
