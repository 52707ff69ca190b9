"""Search against the obvious slow way, the same for a query alone and among others, for every kind of index."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from indexer.ann import flat
from indexer.ann import index as ann
from indexer.errors import Damaged, IndexFactoryError

COUNT, DIM = 700, 16
TRAINED = ["IVF8,Flat", "PCA8,Flat", "PCA8,IVF4,Flat", "IVF8,SQ8", "IVF4,PQ4x4", "IVF4,PQ4x4,RFlat"]
FAST_SCAN = ["PQ8x4fs", "IVF8,PQ8x4fs", "OPQ8,PQ8x4fs"]
KINDS = ["Flat", "SQ8", "HNSW16", *TRAINED, *FAST_SCAN]


def recipe(factory: str, options: str = "") -> SimpleNamespace:
    return SimpleNamespace(factory=factory, options=options)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return 10**12 + np.arange(COUNT) * 7


def make(factory: str, rows: np.ndarray, ids: np.ndarray, options: str = "") -> ann.FaissIndex:
    blocks = (rows[start : start + 100] for start in range(0, len(rows), 100))
    return ann.build(recipe(factory, options), DIM, ids, blocks, train_rows=rows)


def exact(queries: np.ndarray, rows: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), ids[order]


def test_flat_is_exact(rows: np.ndarray, ids: np.ndarray) -> None:
    queries = rows[:50] + 0.1
    scores, found = make("Flat", rows, ids).search(queries, 9)
    expected_scores, expected = exact(queries, rows, ids, 9)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    assert scores.dtype == np.float32
    assert found.dtype == np.int64


@pytest.mark.parametrize("factory", KINDS)
def test_a_query_is_answered_the_same_alone_and_among_others(factory: str, rows: np.ndarray, ids: np.ndarray) -> None:
    index = make(factory, rows, ids)
    queries = rows[:40] + 0.05
    scores, found = index.search(queries, 10)
    for number in range(len(queries)):
        alone_scores, alone = index.search(queries[number : number + 1], 10)
        np.testing.assert_array_equal(alone[0], found[number])
        np.testing.assert_array_equal(alone_scores[0], scores[number])


@pytest.mark.parametrize("factory", KINDS)
def test_allowed_ids_are_the_only_answers(factory: str, rows: np.ndarray, ids: np.ndarray) -> None:
    index = make(factory, rows, ids)
    allowed = np.sort(ids)[::5]
    scores, found = index.search(rows[:20], 10, np.concatenate([allowed, [3, -1, allowed[0]]]))
    assert np.isin(found[found >= 0], allowed).all()
    assert (found[:, 0] >= 0).all()
    if factory == "Flat":
        keep = np.isin(ids, allowed)
        np.testing.assert_array_equal(found, exact(rows[:20], rows[keep], ids[keep], 10)[1])
    assert np.isneginf(scores[found < 0]).all()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_an_index_comes_back_from_its_file(factory: str, rows: np.ndarray, ids: np.ndarray, tmp_path: Path) -> None:
    index = make(factory, rows, ids, "nprobe=3" if "IVF" in factory else "")
    index.save(tmp_path / "i.faiss")
    again = ann.load(tmp_path / "i.faiss", ids)
    assert len(again) == COUNT
    np.testing.assert_array_equal(again.ids, ids)
    for one, other in zip(index.search(rows[:8], 5), again.search(rows[:8], 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_options_reach_faiss(rows: np.ndarray, ids: np.ndarray) -> None:
    few, all_lists = make("IVF8,Flat", rows, ids), make("IVF8,Flat", rows, ids, "nprobe=8")
    expected = exact(rows + 0.3, rows, ids, 10)[1]
    assert (all_lists.search(rows + 0.3, 10)[1] == expected).all()
    assert (few.search(rows + 0.3, 10)[1] != expected).any()


def test_fewer_vectors_than_asked_for_leave_holes(rows: np.ndarray, ids: np.ndarray) -> None:
    scores, found = make("Flat", rows[:3], ids[:3]).search(rows[:2], 5)
    assert (found[:, :3] >= 0).all()
    assert (found[:, 3:] == ann.NO_NEIGHBOUR).all()
    assert np.isneginf(scores[:, 3:]).all()


def test_an_empty_index_and_no_queries_give_empty_answers(rows: np.ndarray, ids: np.ndarray) -> None:
    scores, found = make("Flat", rows[:0], ids[:0]).search(rows[:2], 4)
    assert (found == ann.NO_NEIGHBOUR).all()
    assert np.isneginf(scores).all()
    assert make("Flat", rows, ids).search(rows[:0], 4)[1].shape == (0, 4)
    assert (make("Flat", rows, ids).search(rows[:2], 4, ids[:0])[1] == ann.NO_NEIGHBOUR).all()


def test_equal_scores_are_ordered_by_id(rows: np.ndarray) -> None:
    same = np.repeat(rows[:1], 6, axis=0)
    found = make("Flat", same, np.arange(10, 70, 10)).search(rows[:1], 4)[1]
    np.testing.assert_array_equal(found, [[10, 20, 30, 40]])


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 63, 64, 100, 512])
def test_a_score_depends_on_the_query_and_the_row_alone(dim: int) -> None:
    """Not on where the row stands, nor on a filter: FAISS has kernels for a few widths that round by position."""
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((77, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids, order = np.arange(77), rng.permutation(77)
    straight = ann.build(recipe("Flat"), dim, ids, [rows], train_rows=rows[:0])
    other = ann.build(recipe("Flat"), dim, ids, [rows[order]], train_rows=rows[:0])
    scores, found = straight.search(rows[:3], 77)
    other_scores, other_found = other.search(rows[:3], 77)
    filtered_scores, filtered = straight.search(rows[:3], 77, ids)
    for q in range(3):
        expected = dict(zip(found[q], scores[q], strict=True))
        assert dict(zip(order[other_found[q]], other_scores[q], strict=True)) == expected
        assert dict(zip(filtered[q], filtered_scores[q], strict=True)) == expected


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, np.ndarray]:
    """Vectors with enough rows and channels for matrix products, a thousand of them alike, and queries."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((6000, 64)).astype(np.float32)
    rows[1000:2000] = rows[1000]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = np.concatenate([rows[:20], rows[1000:1003], rng.standard_normal((10, 64)).astype(np.float32)])
    return rows, (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_by_matrix_product_is_the_scan_to_the_last_bit(
    many: tuple[np.ndarray, np.ndarray], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = many
    monkeypatch.setattr(flat, "ROWS_PER_THREAD", 1500)
    index = ann.build(recipe("Flat"), 64, np.arange(6000), [rows], train_rows=rows[:0])
    before = faiss.omp_get_max_threads()
    ann.set_threads(threads)
    try:
        scores, found = index.search(queries, 150)
        for q in range(len(queries)):
            alone_scores, alone = index.search(queries[q : q + 1], 150)
            np.testing.assert_array_equal(alone[0], found[q])
            np.testing.assert_array_equal(alone_scores[0], scores[q])
    finally:
        ann.set_threads(before)
    np.testing.assert_array_equal(found[20], np.arange(1000, 1150))  # of a thousand equal ones, the first
    expected = np.sort(queries @ rows.T, axis=1)[:, ::-1][:, :150]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_batches_of_several_threads_at_once_are_right(many: tuple[np.ndarray, np.ndarray]) -> None:
    rows, queries = many
    index = ann.build(recipe("Flat"), 64, np.arange(6000), [rows], train_rows=rows[:0])
    expected = [index.search(queries[:size], 50) for size in (1, 33)]
    with ThreadPoolExecutor(4) as pool:
        for size, found in zip(
            [1, 33] * 8, pool.map(lambda s: index.search(queries[:s], 50), [1, 33] * 8), strict=True
        ):
            for one, other in zip(found, expected[size > 1], strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("factory", KINDS)
def test_refinement_gives_the_exact_order_of_the_shortlist(factory: str, rows: np.ndarray, ids: np.ndarray) -> None:
    plain = make(factory, rows, ids)
    refined = ann.build(recipe(factory, "refine=4"), DIM, ids, [rows], train_rows=rows, rows=lambda p: rows[p])
    queries = rows[:20] + 0.05
    scores, found = refined.search(queries, 10)
    shortlist = plain.shortlist(queries, 40)
    for q in range(20):
        listed = shortlist[q][shortlist[q] >= 0]
        exact_scores = rows[listed] @ queries[q]
        best = np.lexsort((listed, -exact_scores))[:10]
        np.testing.assert_array_equal(found[q][: len(best)], ids[listed[best]])
        np.testing.assert_allclose(scores[q][: len(best)], exact_scores[best], atol=1e-6)
        np.testing.assert_array_equal(refined.search(queries[q : q + 1], 10)[1][0], found[q])


@pytest.mark.parametrize("factory", KINDS)
@pytest.mark.parametrize("gone", [5, 400])
def test_what_is_left_out_makes_room_for_others(
    factory: str, gone: int, rows: np.ndarray, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "FEW_GONE", 100)
    index = make(factory, rows, ids)
    left_out = ids[:gone]
    without = index.excluding(np.concatenate([left_out, [3, 4]]))
    scores, found = index.search(rows[:20], 10, without=without)
    assert not np.isin(found, left_out).any()
    assert (np.diff(scores, axis=1)[found[:, 1:] >= 0] <= 0).all()
    if factory == "Flat":
        np.testing.assert_array_equal(found, exact(rows[:20], rows[gone:], ids[gone:], 10)[1])
    assert index.excluding(np.array([3, 4])) is None


def test_a_narrow_filter_finds_all_whatever_the_index(rows: np.ndarray, ids: np.ndarray) -> None:
    built = ann.build(recipe("IVF8,SQ8", "refine=2"), DIM, ids, [rows], train_rows=rows, rows=lambda p: rows[p])
    allowed = ids[::9]
    found = built.search(rows[:20], 10, allowed)[1]
    np.testing.assert_array_equal(found, exact(rows[:20], rows[::9], allowed, 10)[1])


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "SQ8", "IVF8,SQ8", "HNSW16", "IVF8,PQ8x4fs"])
def test_a_mapped_index_answers_as_one_in_memory(
    factory: str, rows: np.ndarray, ids: np.ndarray, tmp_path: Path
) -> None:
    make(factory, rows, ids, "nprobe=3" if "IVF" in factory else "").save(tmp_path / "i.faiss")
    read, mapped = ann.load(tmp_path / "i.faiss", ids), ann.load(tmp_path / "i.faiss", ids, mmap=True)
    for one, other in zip(read.search(rows[:8], 5), mapped.search(rows[:8], 5), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mmap", [False, True])
def test_an_index_of_the_first_format_opens(mmap: bool, rows: np.ndarray, ids: np.ndarray, tmp_path: Path) -> None:
    former = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    former.add_with_ids(rows, ids)
    faiss.write_index(former, str(tmp_path / "i.faiss"))
    index = ann.load(tmp_path / "i.faiss", ids, mmap=mmap)
    np.testing.assert_array_equal(index.search(rows[:9], 5)[1], make("Flat", rows, ids).search(rows[:9], 5)[1])
    with pytest.raises(Damaged, match="other ids"):
        ann.load(tmp_path / "i.faiss", ids + 1)
    make("Flat", rows, ids).save(tmp_path / "j.faiss")
    with pytest.raises(Damaged, match="700 vectors for 699 ids"):
        ann.load(tmp_path / "j.faiss", ids[1:])


@pytest.mark.parametrize("shape", [(DIM,), (2, DIM + 1), (1, 2, DIM)])
def test_queries_of_another_shape_are_refused(shape: tuple[int, ...], rows: np.ndarray, ids: np.ndarray) -> None:
    with pytest.raises(ValueError, match=rf"expects \(queries, {DIM}\)"):
        make("Flat", rows, ids).search(np.zeros(shape, dtype=np.float32), 1)


def test_k_below_one_is_refused(rows: np.ndarray, ids: np.ndarray) -> None:
    with pytest.raises(ValueError, match="k is 0"):
        make("Flat", rows, ids).search(rows[:1], 0)


@pytest.mark.parametrize(
    ("factory", "options", "reason"),
    [
        ("Falt", "", "cannot make an index 'Falt'"),
        ("Flat", "nprobe=2", "does not take the search options"),
        ("IVF64,Flat", "", "trains on at least 2496 vectors .64 lists., the store has 700"),
        ("PQ4", "", None),
        ("Flat", "refine=0", "expected one factor from 1 to 1000"),
        ("Flat", "refine=2,refine=3", "expected one factor"),
        ("CAGRA", "", "built on a GPU by a FAISS with cuVS"),
    ],
)
def test_recipes_that_do_not_fit_say_why(
    factory: str, options: str, reason: str | None, rows: np.ndarray, ids: np.ndarray
) -> None:
    if reason is None:  # 256 centroids can learn from 700 rows, but not from 200
        with pytest.raises(IndexFactoryError, match="could not be trained on 200 vectors"):
            make(factory, rows[:200], ids[:200])
        return
    with pytest.raises(IndexFactoryError, match=reason):
        make(factory, rows, ids, options)


def test_files_that_are_no_index_are_refused(tmp_path: Path) -> None:
    (tmp_path / "i.faiss").write_bytes(b"no index at all")
    with pytest.raises(Damaged, match="emcl index rebuild"):
        ann.load(tmp_path / "i.faiss", np.arange(1))


SHIPPED = 128_000
ROWS_ND = np.eye(64, dtype=np.float32)


@pytest.fixture
def _as_shipped():
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = SHIPPED
    yield
    faiss.cvar.distance_compute_blas_threshold = before


def test_an_import_changes_nothing_of_faiss():
    read = "faiss.cvar.distance_compute_blas_threshold"
    program = f"import faiss; before = {read}; import indexer.store.reader, indexer.build.run, service.app; " + (
        f"print(before == {read})"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout.strip() == "True"


@pytest.mark.usefixtures("_as_shipped")
@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8", "PCA32,Flat"])
def test_building_and_loading_an_index_set_the_switch(tmp_path, factory):
    recipe = SimpleNamespace(factory=factory, options="")
    built = ann.build(recipe, 64, np.arange(64), [ROWS_ND], train_rows=np.tile(ROWS_ND, (4, 1)))
    assert faiss.cvar.distance_compute_blas_threshold == 1
    built.save(tmp_path / "index.faiss")

    faiss.cvar.distance_compute_blas_threshold = SHIPPED
    ann.load(tmp_path / "index.faiss", np.arange(64))
    assert faiss.cvar.distance_compute_blas_threshold == 1
