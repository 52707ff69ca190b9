"""Filters on inverted lists: what may be an answer is found as well as without a filter, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from indexer.ann import index as ann

COUNT, DIM, K = 6000, 32, 50
FLAT_CENTROIDS = ["IVF64,SQ8"]
OTHERS = ["IVF64,PQ16x4fs", "OPQ16_32,IVF64,PQ16x4fs", "PCA24,IVF64,SQ8", "IVF64,PQ16x4fs,RFlat"]
GRAPH = ["IVF64_HNSW16,SQ8"]  # over centroids, which does not lead to all of them


CLUSTERS = np.random.default_rng(2).integers(0, 30, COUNT)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, DIM))[CLUSTERS] + 0.8 * rng.standard_normal((COUNT, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def many_are_few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ann, "FEW_ALLOWED", 100)
    threads = faiss.omp_get_max_threads()
    ann.set_threads(1)
    yield
    ann.set_threads(threads)


def build(factory: str, rows: np.ndarray) -> ann.FaissIndex:
    recipe = SimpleNamespace(factory=factory, options="nprobe=3,refine=16")
    return ann.build(recipe, DIM, np.arange(COUNT), [rows], train_rows=rows, rows=lambda which: rows[which])


def recall(index: ann.FaissIndex, rows: np.ndarray, queries: np.ndarray, allowed: list[np.ndarray | None]) -> float:
    """Share of the exact best that is found; ``allowed`` for each query."""
    found = []
    for query, ids in zip(queries, allowed, strict=True):
        among = np.arange(COUNT) if ids is None else ids
        true = among[np.argsort(-(rows[among] @ query))[:K]]
        found.append(len(np.intersect1d(index.search(query[None], K, ids)[1], true)) / K)
    return float(np.mean(found))


@pytest.mark.parametrize("factory", FLAT_CENTROIDS + OTHERS)
def test_a_filter_finds_what_there_is_by_the_recall_without_one(factory: str, rows: np.ndarray) -> None:
    index, queries = build(factory, rows), rows[:40]
    stated = recall(index, rows, queries, [None] * 40)
    assert 0.5 < stated < 0.99
    anywhere = np.sort(np.random.default_rng(1).permutation(COUNT)[: COUNT * 22 // 100])
    assert recall(index, rows, queries, [anywhere] * 40) > stated - 0.02
    elsewhere = [np.flatnonzero((CLUSTERS - CLUSTERS[number]) % 30 > 23) for number in range(40)]
    assert recall(index, rows, queries, elsewhere) > stated - 0.06
    far = [np.sort(np.argsort(rows @ query)[: COUNT * 22 // 100]) for query in queries]
    assert recall(index, rows, queries, far) > stated - 0.02
    for query, ids in zip(queries, far, strict=True):
        assert (index.search(query[None], K, ids)[1] >= 0).all()


@pytest.mark.parametrize("factory", FLAT_CENTROIDS + OTHERS + GRAPH)
def test_how_far_one_query_has_to_look_changes_nothing_for_another(factory: str, rows: np.ndarray) -> None:
    index = build(factory, rows)
    allowed = np.sort(np.argsort(rows @ rows[0])[: COUNT // 5])  # far from the first, near to what it is far from
    queries = np.concatenate([rows[:5], rows[allowed[:5]]])
    scores, found = index.search(queries, K, allowed)
    for number in range(len(queries)):
        alone_scores, alone = index.search(queries[number : number + 1], K, allowed)
        np.testing.assert_array_equal(alone[0], found[number])
        np.testing.assert_array_equal(alone_scores[0], scores[number])


@pytest.mark.parametrize("factory", FLAT_CENTROIDS + OTHERS + GRAPH)
def test_no_more_lists_than_there_are(factory: str, rows: np.ndarray) -> None:
    index = build(factory, rows)
    index.configure("nprobe=40,refine=64")
    allowed = np.arange(0, COUNT, 20)
    true = allowed[np.argsort(-(rows[:9] @ rows[allowed].T), axis=1)[:, :5]]
    np.testing.assert_array_equal(index.search(rows[:9], 5, allowed)[1], true)
    assert faiss.extract_index_ivf(index.inner).nprobe == 40, "a filter leaves the index as it is"
