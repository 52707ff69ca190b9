"""The query bank of a store, and searches that are normalised by it."""

from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from service_support import random_video
from typer.testing import CliRunner

from indexer.cli import app as index_app
from indexer.errors import Damaged
from indexer.locations import Location
from indexer.store import query_bank as bank_module
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.query_bank import KINDS, QUERY_BANK, compute_bank, read_bank, write_bank
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.config import EMCLConfig
from model.evaluate.corpus import with_emcl
from model.evaluate.hubness import BankNorm
from model.evaluate.query_bank import QueryBank
from model.evaluate.rank import fill_floor
from service.app import create_app
from service.errors import Conflict, Unprocessable
from service.search.engine import Engine
from service.search.values import QueryLimits, Ranking, SearchQuery, VideoFilter
from service.settings import load_settings

LIMITS = QueryLimits(max_texts=64, max_text_chars=200, max_candidates=1000, default_candidates=20)
VIDEOS = 45  # with 1 to 3 segments each: 90, more than the candidates
COLOURS, SHAPES = ("red", "blue", "green", "white", "black"), ("ring", "box", "star", "disc", "cross", "cube")
BANK = QueryBank(
    texts=tuple(f"a {colour} {shape} moves" for colour in COLOURS for shape in SHAPES),
    source="test",
    available=30,
    seed=0,
    top=2,
)


def fill(path, encoder, numbers, model=None):
    """Videos of random features that lean to one side, so that some are near to all texts."""
    settings = StoreSettings(
        model_spec=ModelSpec(model=model),
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        sampling=encoder.config.sampling,
    )
    side = encoder.encode_texts(["a thing"])[0]
    with StoreWriter.open(path, settings=settings) as writer:
        for number in numbers:
            rng, name = np.random.default_rng(number), f"{number:064x}"
            location = Location(path=f"/nowhere/v{number}.mp4", video_id=name, size_bytes=1, modified_ns=1)
            writer.add_locations([location])
            writer.add_videos([random_video(rng, encoder, number, most_frames=5, lean_D=side)])
            writer.add_tags({name: [f"mod2-{number % 2}"]})
        writer.publish(encoder)
    return path


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    """The tiny model, calibrated to 20 candidates."""
    config = tiny_encoder.config
    changed = with_emcl(tiny_encoder, EMCLConfig(num_bases=4, iterations=3, beta=0.3))
    search = config.search.model_copy(update={"candidates": 20})
    changed.net.config = changed.net.config.model_copy(update={"search": search})
    return changed


@pytest.fixture(scope="module")
def store(tmp_path_factory, encoder):
    return fill(tmp_path_factory.mktemp("bank") / "store", encoder, range(VIDEOS))


@pytest.fixture(scope="module")
def computed(store, encoder):
    with StoreReader.open(store, fingerprint=encoder.fingerprint) as reader:
        return compute_bank(reader, encoder, BANK)


@pytest.fixture
def banked(tmp_path, encoder):
    """A store of its own with its bank."""
    path = fill(tmp_path / "store", encoder, range(VIDEOS))
    with StoreReader.open(path) as reader:
        write_bank(path, compute_bank(reader, encoder, BANK))
    return path


def open_engine(store, encoder):
    return Engine(
        encoder, lambda: StoreReader.open(store, fingerprint=encoder.fingerprint), limits=LIMITS, cache_entries=100
    )


def scores_of(reader, encoder, text, kind):
    """Every segment's score for one text, as one search after another would give it; -inf for no candidate."""
    ids_N, row_1D = reader.segment_ids(), encoder.encode_texts([text])
    mapped_1D = encoder.map_rows(reader.frozen_map, row_1D)
    scores_N = np.full(len(ids_N), -np.inf)
    count = encoder.config.search.candidates if kind == "emcl" else len(ids_N)
    stage1, ids = reader.search_videos(mapped_1D, count)
    if kind == "frozen":
        scores_N[np.searchsorted(ids_N, ids[0])] = stage1[0]
        return scores_N
    ids_C = np.sort(ids[0])
    features, mask = reader.segment_features(ids_C)
    scored = encoder.score_videos(row_1D, features[None], mask[None], None, kind)
    scores_N[np.searchsorted(ids_N, ids_C)] = scored.scores_QN[0]
    return scores_N


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_searches_one_by_one(store, encoder, computed, kind):
    with StoreReader.open(store) as reader:
        scores = np.stack([scores_of(reader, encoder, text, kind) for text in BANK.texts])
    expected = BankNorm.fit([fill_floor(scores)], scores.shape[1], beta=20.0, top=2)
    norm = computed.norms[kind]
    np.testing.assert_allclose(norm.log_sums_N, expected.log_sums_N, atol=1e-4)
    np.testing.assert_array_equal(norm.activated_N, expected.activated_N)
    assert (norm.queries, norm.beta, norm.top) == (30, 20.0, 2)
    assert np.ptp(norm.hubness) > 0.1


def test_statistics_do_not_depend_on_the_blocks(store, encoder, computed, monkeypatch):
    monkeypatch.setattr(bank_module, "BLOCK_SCORES", 30 * 7)
    monkeypatch.setattr(bank_module, "TEXTS_AT_ONCE", 4)
    with StoreReader.open(store) as reader:
        again = compute_bank(reader, encoder, BANK)
    for kind in KINDS:
        np.testing.assert_allclose(again.norms[kind].log_sums_N, computed.norms[kind].log_sums_N, atol=1e-4)
        np.testing.assert_array_equal(again.norms[kind].activated_N, computed.norms[kind].activated_N)


def test_a_bank_is_read_as_it_was_written(tmp_path, computed):
    digest = write_bank(tmp_path, computed)
    again = read_bank(tmp_path)
    assert again.digest == digest
    assert (again.fingerprint, again.scoring, again.source) == (computed.fingerprint, computed.scoring, "test")
    np.testing.assert_array_equal(again.ids_N, computed.ids_N)
    for kind in KINDS:
        np.testing.assert_array_equal(again.norms[kind].log_sums_N, computed.norms[kind].log_sums_N)
        np.testing.assert_array_equal(again.norms[kind].activated_N, computed.norms[kind].activated_N)
    assert read_bank(tmp_path / "elsewhere") is None


def test_a_damaged_bank_is_refused(tmp_path, computed):
    write_bank(tmp_path, computed)
    path = tmp_path / QUERY_BANK
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], _with_other_sums(tmp_path, computed)):
        path.write_bytes(content)
        with pytest.raises(Damaged, match="emcl index bank"):
            read_bank(tmp_path)


def _with_other_sums(folder, computed):
    """A sound archive whose numbers are not those that its checksum was made of."""
    write_bank(folder, computed)
    with np.load(folder / QUERY_BANK) as file:
        arrays = dict(file)
    arrays["none/log_sums"] = arrays["none/log_sums"] + 1e-9
    np.savez(folder / "other.npz", **arrays)
    return (folder / "other.npz").read_bytes()


def test_a_segment_that_the_bank_does_not_know_takes_the_median(computed):
    known = computed.ids_N[[4, 40]]
    ids = np.array([-1, known[0], computed.ids_N[-1] + 7, known[1]])
    norm = computed.for_candidates("none", ids)
    whole = computed.norms["none"]
    np.testing.assert_array_equal(norm.log_sums_N[[1, 3]], whole.log_sums_N[[4, 40]])
    np.testing.assert_array_equal(norm.log_sums_N[[0, 2]], np.median(whole.log_sums_N))
    np.testing.assert_array_equal(norm.activated_N[[1, 3]], whole.activated_N[[4, 40]])
    assert not norm.activated_N[[0, 2]].any()


@pytest.mark.parametrize("rerank", KINDS)
def test_a_search_is_normalised_as_the_whole_matrix_would_be(banked, encoder, rerank):
    engine = open_engine(banked, encoder)
    moved = 0
    for text in ("a red ring", "a black cube stops", "two stars", "a thing", "noise"):
        ranking = Ranking(k=20, rerank=rerank, group="segment")
        plain = engine.search([SearchQuery(text=text, ranking=ranking)])[0].hits
        (found,) = engine.search([SearchQuery(text=text, ranking=replace(ranking, normalise="qb-norm"))])
        with StoreReader.open(banked) as reader:
            ids_N, stored = reader.segment_ids(), read_bank(banked)
            scores = np.full((1, len(ids_N)), -np.inf)
            for hit in plain:
                scores[0, np.searchsorted(ids_N, hit.segment_id)] = hit.score
        expected = stored.norms[rerank].rescore(scores)[0]
        order = np.argsort(-np.round(expected, 6), kind="stable")[: len(plain)]
        assert [hit.segment_id for hit in found.hits] == ids_N[order].tolist()
        np.testing.assert_allclose([hit.score for hit in found.hits], expected[order], atol=1e-5)
        moved += [hit.segment_id for hit in found.hits] != [hit.segment_id for hit in plain]
    engine.close()
    assert moved, "the bank changed no order at all, so this showed nothing"


def test_a_normalised_answer_does_not_depend_on_the_batch(banked, encoder):
    engine = open_engine(banked, encoder)
    queries = [
        SearchQuery(text=text, ranking=Ranking(k=5, normalise=how), filter=VideoFilter(tags=tags))
        for text in ("a red ring", "two stars", "noise")
        for how in ("none", "qb-norm")
        for tags in ((), ("mod2-1",))
    ]
    together = engine.search(queries)
    for query, result in zip(queries, together, strict=True):
        (alone,) = engine.search([query])
        assert [hit.segment_id for hit in alone.hits] == [hit.segment_id for hit in result.hits]
        np.testing.assert_allclose([h.score for h in alone.hits], [h.score for h in result.hits], atol=1e-6)
    engine.close()


def test_videos_added_since_are_found_too(banked, encoder):
    engine = open_engine(banked, encoder)
    with StoreWriter.open(banked) as writer:
        number, rng = 777, np.random.default_rng(777)
        name = f"{number:064x}"
        location = Location(path="/nowhere/new.mp4", video_id=name, size_bytes=1, modified_ns=1)
        writer.add_locations([location])
        side = 3 * encoder.encode_texts(["a red ring"])[0]
        writer.add_videos([random_video(rng, encoder, number, most_frames=5, lean_D=side)])
        writer.publish(encoder)
    engine.reload()
    everything = Ranking(k=91, candidates=91, normalise="qb-norm", group="segment")
    (result,) = engine.search([SearchQuery(text="a red ring", ranking=everything)])
    assert name in {hit.video_id for hit in result.hits}
    engine.close()


def test_without_a_usable_bank_it_is_a_conflict(store, banked, encoder):
    query = SearchQuery(text="a ring", ranking=Ranking(normalise="qb-norm"))
    engine = open_engine(store, encoder)
    for refused in (engine.check_bank, lambda: engine.search([query])):
        with pytest.raises(Conflict, match=r"no query bank.*emcl index bank"):
            refused()
    engine.close()
    engine = open_engine(banked, with_emcl(encoder, EMCLConfig(num_bases=4, iterations=3, beta=0.4)))
    with pytest.raises(Conflict, match="other settings"):
        engine.search([query])
    engine.close()
    (banked / QUERY_BANK).write_bytes(b"no archive")
    engine = open_engine(banked, encoder)
    assert engine.search([SearchQuery(text="a ring")])[0].hits, "a damaged bank is no reason not to search"
    with pytest.raises(Conflict, match="damaged"):
        engine.check_bank()
    engine.close()


def test_another_bank_is_another_version_of_the_answers(banked, encoder):
    engine = open_engine(banked, encoder)
    query = SearchQuery(text="a ring", ranking=Ranking(normalise="qb-norm"))
    before = engine.search([query])[0].source.version
    with StoreReader.open(banked) as reader:
        write_bank(banked, compute_bank(reader, encoder, replace(BANK, beta=5.0)))
    engine.reload()
    assert engine.search([query])[0].source.version != before
    (banked / QUERY_BANK).unlink()
    engine.reload()
    with pytest.raises(Conflict):
        engine.check_bank()
    engine.close()


def test_only_texts_are_normalised():
    query = SearchQuery(video_id="0" * 64, ranking=Ranking(normalise="qb-norm"))
    with pytest.raises(Unprocessable, match="normalise for a video_id"):
        LIMITS.check_search(query)


def test_over_http(store, banked, encoder):
    for folder, status in ((store, 409), (banked, 200)):
        settings = load_settings({"store": folder, "allowed_hosts": "testserver"})

        def reader(folder=folder):
            return StoreReader.open(folder, fingerprint=encoder.fingerprint)

        engine = Engine(encoder, reader, limits=QueryLimits.from_settings(settings), cache_entries=10)
        with TestClient(create_app(settings, engine)) as client:
            answer = client.post("/v1/search", json={"text": "a red ring", "k": 3, "normalise": "qb-norm"})
            assert answer.status_code == status, answer.text
            if status == 409:
                assert "emcl index bank" in answer.json()["next_step"]
                assert client.post("/v1/search", json={"text": "a red ring"}).status_code == 200
            else:
                assert len(answer.json()["hits"]) == 3
            wrong = client.post("/v1/search", json={"text": "a", "normalise": "dual-softmax"})
            assert wrong.status_code == 422


def test_the_command_computes_and_stores_a_bank(tmp_path, tiny_encoder, tiny_checkpoint):
    path = fill(tmp_path / "store", tiny_encoder, range(6), model=str(tiny_checkpoint))
    captions = tmp_path / "train.jsonl"
    captions.write_text('{"captions": ["a red ring", "a box"]}\n{"captions": ["a star"]}\n', encoding="utf-8")
    arguments = ["bank", "--store", str(path), "--captions", str(captions), "--size", "2", "--device", "cpu"]
    result = CliRunner().invoke(index_app, arguments)
    assert result.exit_code == 0, result.output
    assert "query bank of 2 texts" in result.stdout
    assert set(read_bank(path).norms) == set(KINDS)
    assert read_bank(path).norms["emcl"].queries == 2
    result = CliRunner().invoke(index_app, ["bank", "--store", str(tmp_path / "none"), "--captions", str(captions)])
    assert "holds no store" in str(result.exception)
