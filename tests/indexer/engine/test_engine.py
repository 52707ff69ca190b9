"""On Milvus Lite: an engine gives the answers of the embedded store, follows its changes, and survives kills."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from index_support import DIM, FakeEncoder, fill, settings
from library_contract import check_library

from indexer.engine import follow
from indexer.engine import reader as engine_reader
from indexer.engine.milvus import MilvusEngine
from indexer.engine.reader import EngineReader
from indexer.engine.state import need_state
from indexer.errors import EngineBehind, EngineError, EngineUnavailable
from indexer.library import EVERYTHING, Wanted
from indexer.store import generation
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.emcl.em import FrozenMap

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed (extra dev)")

TEXTS = np.random.default_rng(0).standard_normal((3, DIM)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        fill(writer, range(12))
        writer.publish(FakeEncoder())
    return tmp_path / "s"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[MilvusEngine]:
    """Milvus Lite; or the server that ``EMCL_TEST_MILVUS`` names, which should hold nothing else."""
    made = MilvusEngine(os.environ.get("EMCL_TEST_MILVUS", f"milvus-lite://{tmp_path}/engine.db"), timeout_seconds=30)
    yield made
    for collection in made.collections():
        if collection.startswith("test_"):
            made.drop(collection)
    made.close()


@pytest.fixture(params=[0, 4096], ids=["by the engine", "exact"])
def exact_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(engine_reader, "EXACT_ROWS", request.param)
    return int(request.param)


class Refitting(FakeEncoder):
    """Fits another map whenever it is asked."""

    fits = 0

    def fit_frozen_map(self, rows_ND: np.ndarray) -> FrozenMap:  # type: ignore[override]
        type(self).fits += 1
        return replace(FrozenMap.neutral(DIM), base_norms_K=torch.full((1,), 1.0 + self.fits))


def filled(store: Path, engine: MilvusEngine) -> str:
    name = follow.create(store, engine, prefix="test")
    follow.fill(store, engine)
    return name


def check(store: Path, engine: MilvusEngine) -> None:
    with StoreReader.open(store) as truth, EngineReader.connected(store, engine) as view:
        check_library(view, truth, TEXTS, ks=(1, 3, 50))


def change(store: Path) -> None:
    with StoreWriter.open(store) as writer:
        fill(writer, range(12, 15))
        writer.remove_videos([f"{5:064x}", f"{8:064x}"])
        writer.edit_video(f"{1:064x}", tags=["even"])  # matches another filter from now on
        writer.remove_captions([3])


def test_the_engine_answers_as_an_exhaustive_search(store: Path, engine: MilvusEngine, exact_rows: int) -> None:
    filled(store, engine)
    check(store, engine)


def test_more_rows_than_a_shortlist_takes(
    tmp_path: Path, engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_reader, "EXACT_ROWS", 0)
    with StoreWriter.open(tmp_path / "s", settings=settings()) as writer:
        fill(writer, range(60))
        writer.publish(FakeEncoder())
        filled(tmp_path / "s", engine)
    with StoreReader.open(tmp_path / "s") as truth, EngineReader.connected(tmp_path / "s", engine) as view:
        assert truth.counts.segments > 3 * (3 + 32)
        check_library(view, truth, TEXTS, ks=(1, 3))


def test_changes_count_at_once_and_after_they_were_applied(store: Path, engine: MilvusEngine, exact_rows: int) -> None:
    filled(store, engine)
    change(store)
    assert follow.behind(store) > 0
    check(store, engine)
    applied = follow.apply_changes(store, engine)
    assert applied.written > 0
    assert applied.deleted > 0
    assert follow.behind(store) == 0
    check(store, engine)
    assert follow.verify(store, engine).problems == ()


def test_an_open_view_stays_and_its_successor_follows(store: Path, engine: MilvusEngine) -> None:
    filled(store, engine)
    with EngineReader.connected(store, engine) as view:
        assert view.refreshed() is None
        before = view.count_matching(EVERYTHING)
        change(store)
        assert view.count_matching(EVERYTHING) == before
        newer = view.refreshed()
        assert newer is not None
        assert newer.version != view.version
        newer.close()


def test_a_publication_keeps_the_map_while_there_are_collections(store: Path, engine: MilvusEngine) -> None:
    name = filled(store, engine)

    def digest() -> str:
        with StoreReader.open(store) as view:
            return generation.digest_of(view.correction)

    before = digest()
    change(store)
    with StoreWriter.open(store) as writer:
        writer.publish(Refitting())
    assert digest() == before
    check(store, engine)
    follow.drop(store, engine, name)
    assert engine.collections() == []
    with StoreWriter.open(store) as writer:
        fill(writer, range(15, 17))
        writer.publish(Refitting())
    assert digest() != before


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program handles it."""


@pytest.mark.parametrize("later", [False, True])
def test_a_fill_that_is_killed_at_any_write_goes_on(
    store: Path, engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    monkeypatch.setattr(follow, "BATCH_ROWS", 4)
    follow.create(store, engine, prefix="test")
    straight, kills = MilvusEngine.upsert, 0
    for when in range(5):
        writes = 0

        def upsert(self: MilvusEngine, name: str, rows: object, when: int = when) -> None:
            nonlocal writes
            straight(self, name, rows)  # type: ignore[arg-type]
            writes += 1
            if writes > when % 2:  # the engine has the rows, the record does not say so
                raise Killed

        monkeypatch.setattr(MilvusEngine, "upsert", upsert)
        with pytest.raises(Killed):
            follow.fill(store, engine)
        kills += 1
        if later and when == 2:
            change(store)
    monkeypatch.setattr(MilvusEngine, "upsert", straight)
    follow.fill(store, engine)
    assert kills == 5
    assert follow.verify(store, engine).problems == ()
    check(store, engine)


def test_verify_names_what_is_missing_extra_or_different(store: Path, engine: MilvusEngine) -> None:
    name = filled(store, engine)
    state = need_state(store)
    videos, captions = state.videos(name), state.captions(name)
    with StoreReader.open(store) as view:
        first, second = view.segment_ids()[:2].tolist()
        rows = list(follow.rows_of(view, "videos", np.array([second])))
    engine.delete(videos, [first])
    engine.upsert(videos, [type(rows[0])(**{**vars(rows[0]), "vector_M": -rows[0].vector_M})])
    engine.upsert(captions, [type(rows[0])(**{**vars(rows[0]), "id": 10**6})])
    problems = "\n".join(follow.verify(store, engine).problems)
    assert f"{videos} has no row {first}" in problems
    assert f"row {second} of {videos} is another vector" in problems
    assert f"{captions} holds 25 rows, the store 24" in problems


def test_other_collections_can_be_switched_to_and_back(store: Path, engine: MilvusEngine) -> None:
    first = filled(store, engine)
    second = follow.create(store, engine, prefix="test", index="IVF_FLAT")
    with pytest.raises(EngineError, match="was not filled to the end"):
        follow.switch(store, engine, second)
    with EngineReader.connected(store, engine) as view:
        follow.fill(store, engine, second)
        change(store)
        follow.switch(store, engine, second)
        newer = view.refreshed()
        assert newer is not None
        assert newer.version.endswith(f":{second}")
        newer.close()
    check(store, engine)
    with pytest.raises(EngineError, match="is in use"):
        follow.drop(store, engine, second)
    follow.switch(store, engine, first)
    check(store, engine)


def test_rows_of_another_map_are_refused(store: Path, engine: MilvusEngine) -> None:
    filled(store, engine)
    state = need_state(store)
    state.changed("g1", map_digest="0" * 64).write(store)
    with pytest.raises(EngineError, match="was filled under map"):
        EngineReader.connected(store, engine)


def test_too_many_changes_are_an_error_that_says_what_to_do(
    store: Path, engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, engine)
    change(store)
    monkeypatch.setattr(engine_reader, "MOST_FRESH", 2)
    with pytest.raises(EngineBehind, match="run `emcl engine fill`"):
        EngineReader.connected(store, engine)


def test_an_index_that_returns_too_few_rows_is_made_up_for(
    store: Path, engine: MilvusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, engine)
    monkeypatch.setattr(engine_reader, "EXACT_ROWS", 0)
    straight = MilvusEngine.shortlist

    def lossy(self: MilvusEngine, *asked: object) -> np.ndarray:
        ids_Qw = straight(self, *asked)  # type: ignore[arg-type]
        ids_Qw[:, 1:] = -1
        return ids_Qw

    monkeypatch.setattr(MilvusEngine, "shortlist", lossy)
    with StoreReader.open(store) as truth, EngineReader.connected(store, engine) as view:
        check_library(view, truth, TEXTS, ks=(3, 50))


def test_a_predicate_that_the_engine_cannot_say_is_answered_exactly(engine: MilvusEngine) -> None:
    assert engine.expression(EVERYTHING) == ""
    assert engine.expression(Wanted(without_segments=tuple(range(1001)))) is None
    recorded = ({"recorded_from": 1.0}, {"recorded_until": 1.0}, {"camera": "a"}, {"folder": "/a"}, {"min_height": 1})
    assert [engine.expression(Wanted(**field)) for field in recorded] == [None] * 5
    assert engine.expression(Wanted(tags=('a "b"',), min_seconds=30.1)) == (
        'array_contains(tags, "a \\"b\\"") and seconds >= 30.1'
    )


def test_addresses_that_name_no_engine_say_what_is_expected() -> None:
    for url in ("http://host:1", "milvus://", "milvus-lite:///tmp/folder"):
        with pytest.raises(EngineError, match="expected milvus"):
            MilvusEngine(url)


def test_an_engine_that_cannot_be_reached_is_unavailable() -> None:
    with pytest.raises(EngineUnavailable, match="failed while connecting"):
        MilvusEngine("milvus://127.0.0.1:9")
