"""Which index is chosen, that it finds what it says it finds, and that the store and its readers keep to it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import faiss
import numpy as np
import pytest
from index_support import DIM, FakeEncoder, fill, settings
from pydantic import ValidationError

from indexer.ann import gpu
from indexer.ann import index as ann
from indexer.ann import recipe as ann_recipe
from indexer.ann.choose import Bounds, candidates, lists_for
from indexer.errors import IndexFactoryError, StoreError
from indexer.library import Wanted
from indexer.options import with_index
from indexer.store import build_index, generation
from indexer.store.config import Manifest, Wishes
from indexer.store.reader import Serving, StoreReader
from indexer.store.writer import StoreWriter

SMALL = Bounds(flat_bytes=4 * DIM * 50, training_rows=39)
"""Bounds under which a few hundred vectors are many."""


class Rows:
    """Stands for ``MappedSide``: rows in memory."""

    def __init__(self, rows: np.ndarray) -> None:
        self.all = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        self.side = type("Side", (), {"ids_N": np.arange(len(rows)), "reader": type("R", (), {"dim": rows.shape[1]})})

        self.dim, self.name = rows.shape[1], "videos"

    def __len__(self) -> int:
        return len(self.all)

    def raw_sample(self, count: int) -> np.ndarray:
        return self.sample(count)

    def asked_by(self, raw: np.ndarray, name: str) -> np.ndarray:
        return raw

    def rows(self, which: np.ndarray | slice) -> np.ndarray:
        return self.all[which]

    def blocks(self):
        yield from np.array_split(self.all, 5)

    def sample(self, count: int) -> np.ndarray:
        return self.all[:: max(1, len(self.all) // count)][:count]


@pytest.fixture(scope="module")
def clusters() -> Rows:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 32))
    return Rows(centres[rng.integers(0, 30, 3000)] + 0.4 * rng.standard_normal((3000, 32)))


@pytest.fixture(scope="module")
def captions(clusters: Rows) -> Rows:
    rng = np.random.default_rng(1)
    return Rows(clusters.all[rng.integers(0, 3000, 300)] + 0.05 * rng.standard_normal((300, 32)))


def test_the_choice_follows_size_and_memory() -> None:
    def kinds(count: int, memory: int) -> list[tuple[str, bool]]:
        return [(kind.factory, kind.mapped) for kind in candidates(count, 512, memory)]

    assert kinds(10_000, 4 << 30) == [("Flat", False)]
    assert kinds(10_000, 1 << 20) == [("Flat", True)]
    assert kinds(10**6, 4 << 30) == [("IVF4096,SQ8", False), ("SQ8", False), ("SQfp16", False), ("Flat", False)]
    tight = kinds(10**6, 200 << 20)
    assert tight[0] == ("IVF4096,PQ128x4fs", False)
    assert [mapped for _, mapped in tight[1:]] == [True] * 4
    assert kinds(10**6, 1 << 20)[0] == ("IVF4096,SQ8", True), "codes that FAISS cannot map must fit"
    assert kinds(10**6, 3 << 30)[-1] == ("Flat", False)
    for count in (1, 40, 100, 5000, 10**5, 10**7):
        assert lists_for(count, 39) * 39 <= max(count, 39)


def test_every_kind_is_more_exact_than_the_one_before_and_the_last_is_exact() -> None:
    kinds = candidates(10**6, 512, 200 << 20)
    assert [kind.bytes_per_vector for kind in kinds[2:]] == sorted(kind.bytes_per_vector for kind in kinds[2:])
    assert [kind.is_exact for kind in kinds] == [False] * 4 + [True]


def test_measured_recall_is_what_a_slow_comparison_says(clusters: Rows, captions: Rows) -> None:
    asked = build_index.ask(clusters, captions, names=("videos", "captions"), queries=60)
    assert asked.source == "captions"
    recipe = candidates(3000, 32, 1 << 30, SMALL)[0]
    index = build_index.build(clusters, recipe)
    index.configure("nprobe=2,refine=1")
    found = index.search(asked.rows_QD, 100)[1]
    true = np.argsort(-(asked.rows_QD @ clusters.all.T), axis=1)[:, :100]
    slow = np.mean([len(np.intersect1d(a, b)) / 100 for a, b in zip(found, true, strict=True)])
    assert build_index.measure(index, asked, clusters.rows) == pytest.approx(slow, abs=2e-3)
    assert slow < 0.999
    index.configure("nprobe=64,refine=4")
    assert build_index.measure(index, asked, clusters.rows) == pytest.approx(1.0)


@pytest.mark.parametrize(("recall", "memory"), [(0.9, 1 << 30), (0.99, 1 << 30), (0.9, 120_000), (0.95, 1000)])
def test_what_is_chosen_finds_what_was_asked_for(
    recall: float, memory: int, clusters: Rows, captions: Rows, tmp_path: Path
) -> None:
    wanted = settings(dim=32, index_recall=recall)
    report = build_index.write_index(
        tmp_path / "i", clusters, captions, wanted, names=("videos", "captions"), memory_bytes=memory, bounds=SMALL
    )
    assert report.auto
    assert report.recall >= recall
    assert report.mapped == (report.bytes_per_vector * 3000 > memory * 1.2)
    assert report.factory == "Flat" or report.queries == 150
    refine = float(report.options.partition("refine=")[2] or 0)
    index = ann.load(tmp_path / "i", np.arange(3000), rows=clusters.rows, refine=refine, mmap=report.mapped)
    asked = build_index.ask(clusters, captions, names=("videos", "captions"))
    assert build_index.measure(index, asked.half(1), clusters.rows) == pytest.approx(report.recall, abs=1e-4)


def test_where_no_approximate_kind_finds_enough_the_index_is_exact(
    clusters: Rows, captions: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_index, "measure", lambda *_: 0.5)
    tried: list[str] = []
    build = build_index.build
    monkeypatch.setattr(build_index, "build", lambda own, kind: tried.append(kind.factory) or build(own, kind))
    report = build_index.write_index(
        tmp_path / "i", clusters, captions, settings(dim=32), names=("videos", "captions"), memory_bytes=1 << 30,
        bounds=SMALL,
    )  # fmt: skip
    assert tried == ["IVF64,SQ8", "SQ8", "SQfp16", "Flat"]
    assert (report.factory, report.recall, report.queries) == ("Flat", 1.0, 0)


def test_without_captions_moved_vectors_are_the_queries(clusters: Rows) -> None:
    asked = build_index.ask(clusters, Rows(np.ones((3, 32))), names=("videos", "captions"), queries=50)
    assert asked.source == "videos, moved"
    np.testing.assert_allclose(np.linalg.norm(asked.rows_QD, axis=1), 1, atol=1e-5)
    assert (asked.rows_QD @ clusters.all.T).max() < 0.9999


@pytest.fixture
def many_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build_index.candidates
    monkeypatch.setattr(build_index, "candidates", lambda n, dim, memory, _: plain(n, dim, memory, SMALL))


def test_a_store_chooses_anew_when_it_has_grown(many_are_few: None, tmp_path: Path) -> None:
    store = tmp_path / "s"
    with StoreWriter.open(store, settings=settings()) as writer:
        fill(writer, range(12))
        first = writer.publish(FakeEncoder())
        assert first.indexes["videos"].factory == first.factory == "Flat"
        fill(writer, range(12, 60), captions=0)
        grown = writer.publish(FakeEncoder())
    report = grown.indexes["videos"]
    assert report.factory == grown.factory != "Flat"
    assert (report.auto, report.vectors) == (True, 120)
    assert Manifest.from_json(grown.to_json(), where="here") == grown
    with StoreReader.open(store) as reader:
        ids = reader.segment_ids()
        rows = FakeEncoder().map_rows(None, reader.segment_embeddings(ids))
        scores, found = reader.search_videos(rows[:20], 5)
        np.testing.assert_allclose(
            scores, np.take_along_axis(rows[:20] @ rows.T, np.searchsorted(ids, found), 1), atol=1e-5
        )
        np.testing.assert_array_equal(found[:, 0], ids[:20])
        for q in range(20):
            np.testing.assert_array_equal(reader.search_videos(rows[q : q + 1], 5)[1][0], found[q])
        others = tuple(np.setdiff1d(ids, ids[::7]).tolist())
        narrow = reader.search_videos(rows[:20], 5, Wanted(without_segments=others))[1]
        np.testing.assert_array_equal(narrow, ids[::7][np.argsort(-(rows[:20] @ rows[::7].T), axis=1)[:, :5]])
    with StoreReader.open(store, serving=Serving(mmap="on")) as mapped:
        np.testing.assert_array_equal(mapped.search_videos(rows[:20], 5)[1], found)


def test_what_was_deleted_and_added_since_is_right_over_a_chosen_index(many_are_few: None, tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        fill(writer, range(60), captions=0)
        writer.publish(FakeEncoder())
        gone = [f"{n:064x}" for n in range(0, 60, 3)]
        writer.remove_videos(gone)
        fill(writer, range(60, 66), captions=0)
        with StoreReader.open(tmp_path / "s") as reader:
            ids = reader.segment_ids()
            rows = FakeEncoder().map_rows(None, reader.segment_embeddings(ids))
            found = reader.search_videos(rows, 1)[1][:, 0]
    np.testing.assert_array_equal(found, ids)


def test_a_manifest_of_the_first_format_is_read_and_served(tmp_path: Path) -> None:
    store = tmp_path / "s"
    with StoreWriter.open(store, settings=settings(factory="Flat")) as writer:
        fill(writer, range(6))
        manifest = writer.publish(FakeEncoder())
    with StoreReader.open(store) as reader:
        ids = reader.segment_ids().copy()
        rows = FakeEncoder().map_rows(None, reader.segment_embeddings(ids))
        expected = reader.search_videos(rows, 4)[1]
    folder = store / "generations" / manifest.generation
    former = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    former.add_with_ids(rows, ids)
    faiss.write_index(former, str(folder / generation.VIDEO_INDEX))
    checks = {**manifest.files, generation.VIDEO_INDEX: generation.check_of(folder / generation.VIDEO_INDEX)}
    text = manifest.model_copy(update={"format": 1, "files": checks, "indexes": {}}).to_json()
    (folder / "manifest.json").write_text(text)
    with StoreReader.open(store) as reader:
        assert reader.manifest.indexes == {}
        np.testing.assert_array_equal(reader.search_videos(rows, 4)[1], expected)


def test_options_of_the_index_that_contradict_each_other_are_refused() -> None:
    auto = settings()
    assert with_index(auto, Wishes(index_memory="1GiB", index_recall=0.9)).index_memory == 1 << 30
    named = with_index(auto, Wishes(index="IVF8,SQ8", index_options="nprobe=4"))
    assert (named.factory, named.options) == ("IVF8,SQ8", "nprobe=4")
    assert with_index(named, Wishes(index="auto")).options == ""
    with pytest.raises(IndexFactoryError, match="--index-recall say how to choose"):
        with_index(named, Wishes(index_recall=0.9))
    with pytest.raises(IndexFactoryError, match="auto does not take the search options"):
        with_index(auto, Wishes(index_options="nprobe=4"))
    with pytest.raises(ValidationError, match="could not parse value and unit"):
        Wishes(index_memory="much")


def test_a_gpu_that_is_asked_for_and_absent_is_an_error_that_says_what_to_do() -> None:
    index = ann.build(
        candidates(3, 8, 1 << 30)[0], 8, np.arange(3), [np.eye(3, 8, dtype=np.float32)], train_rows=np.zeros((0, 8))
    )
    assert gpu.on_device(index, "cpu") is index
    if gpu.available():
        pytest.skip("there is a GPU here")
    assert gpu.on_device(index, "auto") is index
    with pytest.raises(StoreError, match="sees none; install faiss-gpu"):
        gpu.on_device(index, "gpu")
    assert not gpu.has_cagra()


@pytest.mark.parametrize("failing", [False, True])
def test_an_index_moves_to_a_card_where_there_is_one_and_answers_the_same(
    failing: bool, clusters: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is played by the CPU: what is tested is what surrounds it."""
    cpu = ann.build(
        candidates(3000, 32, 1 << 30)[0],
        32,
        np.arange(3000),
        clusters.blocks(),
        train_rows=clusters.all,
        rows=clusters.rows,
    )

    def cloned(index: faiss.Index, cards: int) -> faiss.Index:
        if failing:
            raise RuntimeError("not implemented on GPU")
        return index

    monkeypatch.setattr(gpu, "available", lambda: 1)
    monkeypatch.setattr(gpu, "cloned", cloned)
    moved = gpu.on_device(cpu, "auto")
    assert (moved is cpu) == failing
    np.testing.assert_array_equal(moved.search(clusters.all[:9], 10)[1], cpu.search(clusters.all[:9], 10)[1])
    np.testing.assert_array_equal(
        moved.search(clusters.all[:9], 10, np.arange(0, 3000, 2))[1],
        cpu.search(clusters.all[:9], 10, np.arange(0, 3000, 2))[1],
    )
    if failing:
        with pytest.raises(StoreError, match="cannot be moved to the GPU"):
            gpu.on_device(cpu, "gpu")


def test_cagra_is_refused_before_anything_is_encoded_where_it_cannot_be_built() -> None:
    if gpu.has_cagra():
        pytest.skip("it can be built here")
    with pytest.raises(IndexFactoryError, match=r"built on a GPU by a FAISS with cuVS.*install faiss-gpu-cuvs"):
        ann_recipe.check(settings(factory="CAGRA"), 8)


def test_cagra_is_built_where_it_can_be(
    clusters: Rows, captions: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is played by another graph; what is tested is that CAGRA, which FAISS has no name for, gets there."""

    def graph(dim: int, blocks: Iterable[np.ndarray]) -> faiss.Index:
        index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
        for block in blocks:
            index.add(block)
        return index

    monkeypatch.setattr(gpu, "has_cagra", lambda: True)
    monkeypatch.setattr(gpu, "build_cagra", graph)
    wanted = settings(dim=32, factory="CAGRA", options="efSearch=200,refine=2")
    ann_recipe.check(wanted, 32)
    report = build_index.write_index(
        tmp_path / "i", clusters, captions, wanted, names=("videos", "captions"), memory_bytes=1 << 30
    )
    assert (report.factory, report.auto, report.vectors) == ("CAGRA", False, 3000)
    assert report.recall > 0.95
    assert len(ann.load(tmp_path / "i", np.arange(3000))) == 3000
    with pytest.raises(IndexFactoryError, match="'CAGRA' does not take the search options 'nprobe=2'"):
        ann_recipe.check(settings(factory="CAGRA", options="nprobe=2"), 32)


@pytest.mark.gpu
def test_a_card_finds_what_the_cpu_finds(clusters: Rows) -> None:
    if not gpu.available():
        pytest.skip("this build of FAISS sees no GPU")
    for factory in ("Flat", "IVF64,SQ8"):
        kind = next(k for k in candidates(3000, 32, 1 << 30, SMALL) if k.factory == factory)
        cpu = build_index.build(clusters, kind)
        if factory != "Flat":
            cpu.configure("nprobe=8,refine=2")
        card = gpu.on_device(cpu, "gpu")
        found, expected = (index.search(clusters.all[:50], 20)[1] for index in (card, cpu))
        assert np.mean(found == expected) > 0.99
