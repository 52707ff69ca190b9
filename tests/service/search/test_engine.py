"""The engine: answers that depend on nothing but their query, and what each way of ranking means."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numeric_support import tolerance
from service_support import (
    CAPTIONS,
    LIMITS,
    VIDEOS,
    assert_problem,
    fill_store,
    ids,
    random_video,
    serving,
    upload,
    video_id,
)

from indexer.locations import Location
from indexer.store.bank import QUERY_LOG, read_query_log
from indexer.store.confidence import LINE
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from model.config import EMCLConfig
from model.encoder import load_encoder
from model.evaluate.corpus import with_emcl
from service.app import create_app
from service.cli import main
from service.errors import Conflict, NotFound, Unprocessable
from service.search import ranking as ranking_module
from service.search.engine import Engine
from service.search.hits import MOST_MOMENTS
from service.search.query_log import QueryLog
from service.search.values import QueryLimits, Ranking, RerankQuery, SearchQuery, SegmentRef, UploadQuery, VideoFilter
from service.settings import load_settings

TEXT_ALONE_OR_AMONG_OTHERS = 1e-5
"""How close docs/architecture.md promises the cosines of a text to be, encoded alone and in a batch."""


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_encoder):
    return fill_store(tmp_path_factory.mktemp("engine") / "store", tiny_encoder)


@pytest.fixture
def engine(store, tiny_encoder):
    made = Engine(tiny_encoder, lambda: StoreReader.open(store), limits=LIMITS, cache_entries=0)
    yield made
    made.close()


def scores(result):
    return np.array([(hit.score, hit.stage1_score) for hit in result.hits])


@pytest.mark.parametrize("rerank", ["emcl", "none", "frozen"])
def test_an_answer_is_the_same_alone_and_among_31_others(engine, rerank):
    ranking = Ranking(k=20, candidates=50, rerank=rerank)
    query = SearchQuery(text="a small red circle moves left", ranking=ranking)
    others = [SearchQuery(text=f"query {n} " + "with many more words " * (n % 4), ranking=ranking) for n in range(29)]
    others += [SearchQuery(video_id=video_id(3), ranking=ranking), SearchQuery(text="x", ranking=Ranking(candidates=9))]
    alone = engine.search([query])[0]
    among = engine.search([*others[:13], query, *others[13:]])[13]
    assert len(alone.hits) == 20
    assert ids(alone) == ids(among)
    np.testing.assert_allclose(scores(alone), scores(among), atol=TEXT_ALONE_OR_AMONG_OTHERS)
    for one, other in zip(alone.hits, among.hits, strict=True):
        np.testing.assert_allclose(one.frames.weights, other.frames.weights, atol=TEXT_ALONE_OR_AMONG_OTHERS)


@pytest.mark.parametrize("rerank", ["emcl", "none", "frozen"])
def test_the_order_of_candidates_does_not_matter(engine, monkeypatch, rerank):
    query = SearchQuery(text="a small red circle", ranking=Ranking(k=30, candidates=40, rerank=rerank))
    expected = engine.search([query])[0]
    straight = StoreReader.search_videos

    def shuffled(self, queries_QD, k, allowed_segment_ids=None):
        found_scores, found_ids = straight(self, queries_QD, k, allowed_segment_ids)
        order = np.random.default_rng(1).permutation(found_ids.shape[1])
        return found_scores[:, order], found_ids[:, order]

    monkeypatch.setattr(StoreReader, "search_videos", shuffled)
    result = engine.search([query])[0]
    assert result.hits == expected.hits  # to the last bit


def test_uploads_answer_the_same_alone_and_together(engine):
    query = upload(1, frames=3, k=15, candidates=30)
    others = [upload(seed, frames=1 + seed % 6, k=5) for seed in range(2, 9)]
    alone = engine.search_uploads([query])[0]
    among = engine.search_uploads([*others, query])[-1]
    assert [caption.caption_id for caption in alone.captions] == [caption.caption_id for caption in among.captions]
    assert ids(alone) == ids(among)
    np.testing.assert_allclose(
        [caption.score for caption in alone.captions], [caption.score for caption in among.captions], atol=1e-5
    )


def test_frozen_ranks_by_exact_cosine_of_mapped_vectors(engine, tiny_encoder):
    text = "a small red circle"
    result = engine.search([SearchQuery(text=text, ranking=Ranking(k=100, rerank="frozen", group="segment"))])[0]
    with engine.live.lease() as generation:
        reader = generation.reader
        every = reader.segment_ids()
        mapped = tiny_encoder.map_rows(reader.frozen_map, reader.segment_embeddings(every))
        cosines = mapped @ tiny_encoder.map_rows(reader.frozen_map, tiny_encoder.encode_texts([text]))[0]
        best = every[np.argsort(-cosines, kind="stable")[:100]]
    assert [hit.segment_id for hit in result.hits] == best.tolist()
    error = 2 * tolerance(np.float32, tiny_encoder.dim)  # of a cosine, added up in two ways
    np.testing.assert_allclose([hit.score for hit in result.hits], np.sort(cosines)[::-1][:100], rtol=0, atol=error)


@pytest.mark.parametrize("rerank", ["emcl", "none"])
def test_reranking_is_the_models_score_over_the_candidates(engine, tiny_encoder, rerank):
    text = "a small red circle"
    ranking = Ranking(k=25, candidates=25, rerank=rerank, group="segment")
    result = engine.search([SearchQuery(text=text, ranking=ranking)])[0]
    chosen = np.sort([hit.segment_id for hit in result.hits])
    with engine.live.lease() as generation:
        features, mask = generation.reader.segment_features(chosen[None])
    expected = tiny_encoder.score_videos(tiny_encoder.encode_texts([text]), features, mask, None, rerank).scores_QN[0]
    by_id = {hit.segment_id: hit.score for hit in result.hits}
    np.testing.assert_allclose([by_id[number] for number in chosen], expected, atol=1e-5)
    assert [hit.score for hit in result.hits] == sorted(by_id.values(), reverse=True)


def test_emcl_changes_scores_and_none_does_not(engine):
    answers = [
        engine.search([SearchQuery(text="a red circle", ranking=Ranking(k=50, candidates=50, rerank=rerank))])[0]
        for rerank in ("emcl", "none")
    ]
    assert {hit.score for hit in answers[0].hits} != {hit.score for hit in answers[1].hits}


def test_the_moment_is_the_heaviest_frame_of_the_segment(engine):
    for rerank in ("emcl", "none", "frozen"):
        for hit in engine.search([SearchQuery(text="a red circle", ranking=Ranking(k=30, rerank=rerank))])[0].hits:
            assert hit.start_seconds <= hit.frames.moment_seconds <= hit.end_seconds
            assert sum(hit.frames.weights) == pytest.approx(1, abs=1e-5)
            assert hit.frames.moment_seconds == hit.frames.seconds[int(np.argmax(hit.frames.weights))]


def test_all_ways_of_ranking_see_the_same_moment(engine):
    queries = [SearchQuery(text="a red circle", ranking=Ranking(k=60, rerank=r)) for r in ("emcl", "none", "frozen")]
    moments = [{hit.segment_id: hit.frames.moment_seconds for hit in result.hits} for result in engine.search(queries)]
    shared = set.intersection(*(set(each) for each in moments))
    assert shared
    assert all(moments[0][number] == moments[1][number] == moments[2][number] for number in shared)


def test_an_upload_of_indexed_frames_finds_its_video(clip_store, tiny_encoder):
    from model.video.sampling import decode

    engine = Engine(tiny_encoder, lambda: StoreReader.open(clip_store / "store"), limits=LIMITS, cache_entries=0)
    batch = decode(clip_store / "clips" / "clip_3.mp4", sampling=engine.sampling)
    query = UploadQuery(
        frames_FHWC=tiny_encoder.preprocess(batch.frames),
        timestamps_seconds=batch.timestamps_seconds,
        ranking=Ranking(rerank="frozen"),
    )
    result = engine.search_uploads([query])[0]
    engine.close()
    assert result.hits[0].title == "clip_3"
    assert result.hits[0].score == pytest.approx(1, abs=1e-4)
    assert all(0 <= caption.frames.moment_seconds <= batch.duration_seconds for caption in result.captions)


@pytest.mark.parametrize("rerank", ["emcl", "none", "frozen"])
def test_captions_of_an_upload_are_scored_by_the_model(engine, tiny_encoder, rerank):
    query = upload(3, frames=5, k=CAPTIONS, candidates=CAPTIONS, rerank=rerank)
    result = engine.search_uploads([query])[0]
    assert len(result.captions) == CAPTIONS
    found = {caption.caption_id: caption for caption in result.captions}
    with engine.live.lease() as generation:
        texts = generation.reader.caption_embeddings(generation.reader.caption_ids())
        features = tiny_encoder.encode_videos(query.frames_FHWC[None], np.ones((1, 5), bool))
        mask = np.ones((1, 5), bool)
        if rerank == "frozen":
            mapped = tiny_encoder.map_rows(generation.reader.frozen_map, texts)
            pooled = tiny_encoder.map_rows(generation.reader.frozen_map, tiny_encoder.pool(features, mask))
            expected = mapped @ pooled[0]
        else:
            expected = tiny_encoder.score_captions(features, mask, texts[None], None, rerank).scores_QN[0]
        wanted = [found[number].score for number in generation.reader.caption_ids().tolist()]
    np.testing.assert_allclose(wanted, expected, atol=1e-5)


def test_rerank_scores_exactly_the_segments_given(engine):
    named = tuple(SegmentRef(video_id=video_id(n), segment=n % 3) for n in (2, 5, 8, 11, 20))
    found = engine.rerank([RerankQuery(text="a red circle", segments=named)])[0]
    turned = engine.rerank([RerankQuery(text="a red circle", segments=named[::-1])])[0]
    assert {(hit.video_id, hit.segment) for hit in found.hits} == {(ref.video_id, ref.segment) for ref in named}
    assert found.hits == turned.hits
    whole = engine.search([SearchQuery(text="a red circle", ranking=Ranking(k=120, candidates=120, group="segment"))])[
        0
    ]
    stage1 = {hit.segment_id: hit.stage1_score for hit in whole.hits}
    for hit in found.hits:
        assert hit.stage1_score == pytest.approx(stage1[hit.segment_id], abs=1e-5)


def test_embeddings_are_what_stage_one_compares(engine, tiny_encoder):
    rows, source = engine.embed(["a red circle", "another"])
    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=1), 1, rtol=0, atol=2 * tolerance(np.float32, tiny_encoder.dim + 2)
    )
    best = engine.search([SearchQuery(text="a red circle", ranking=Ranking(k=1, rerank="frozen"))])[0].hits[0]
    with engine.live.lease() as generation:
        found, _ = generation.reader.search_videos(rows[:1], 1)
    assert best.score == pytest.approx(float(found[0, 0]), abs=2 * tolerance(np.float32, tiny_encoder.dim))
    assert source.fingerprint == tiny_encoder.fingerprint


def test_texts_are_encoded_once(store, tiny_encoder, monkeypatch):
    engine = Engine(tiny_encoder, lambda: StoreReader.open(store), limits=LIMITS, cache_entries=10)
    encoded = []
    monkeypatch.setattr(
        type(tiny_encoder), "encode_texts", _recording(type(tiny_encoder).encode_texts, encoded), raising=True
    )
    queries = [SearchQuery(text=text) for text in ("one", "two", "one")]
    first, second = engine.search(queries), engine.search(queries)
    engine.probe()  # takes nothing from the cache
    engine.probe()
    engine.close()
    assert encoded == [["one", "two"], ["a video"], ["a video"]]
    assert [result.hits for result in first] == [result.hits for result in second]


def _recording(function, calls):
    def recorded(self, texts):
        calls.append(list(texts))
        return function(self, texts)

    return recorded


def test_gathering_in_turns_changes_nothing(engine, monkeypatch):
    queries = [SearchQuery(text=f"query {n}", ranking=Ranking(k=10, candidates=30)) for n in range(8)]
    at_once = engine.search(queries)
    monkeypatch.setattr(ranking_module, "GATHER_ELEMENTS", 1)
    in_turns = engine.search(queries)
    assert [ids(result) for result in at_once] == [ids(result) for result in in_turns]


@pytest.fixture(scope="module")
def hour_store(tmp_path_factory, tiny_encoder):
    """One static hour, 120 segments that are nearly the same, among 15 short videos."""
    rng = np.random.default_rng(11)
    path = tmp_path_factory.mktemp("hour") / "store"
    settings = StoreSettings(
        model_spec=ModelSpec(),
        fingerprint=tiny_encoder.fingerprint,
        dim=tiny_encoder.dim,
        sampling=tiny_encoder.config.sampling,
    )
    hour = random_video(rng, tiny_encoder, 0)
    first = hour.segments[0]
    text_D = tiny_encoder.encode_texts([HOUR_TEXT])[0]
    lean = first.features_FD + 20 * text_D / np.linalg.norm(text_D)
    segments = [
        replace(
            first,
            number=number,
            start_seconds=30.0 * number,
            end_seconds=30.0 * number + 30,
            features_FD=lean,
            pooled_D=lean.mean(axis=0),
        )
        for number in range(120)
    ]
    videos = [replace(hour, segments=segments), *(random_video(rng, tiny_encoder, number) for number in range(1, 16))]
    with StoreWriter.open(path, settings=settings) as writer:
        writer.add_locations(
            Location(path=f"/nowhere/{video.video_id}", video_id=video.video_id, size_bytes=1, modified_ns=1)
            for video in videos
        )
        writer.add_videos(videos)
        writer.publish(tiny_encoder)
    return path


HOUR_TEXT = "a thing that the hour shows"


@pytest.mark.parametrize("rerank", ["emcl", "none", "frozen"])
def test_a_static_hour_does_not_hide_the_other_videos(hour_store, tiny_encoder, rerank):
    engine = Engine(tiny_encoder, lambda: StoreReader.open(hour_store), limits=LIMITS, cache_entries=0)
    try:
        for k, offset, count in ((10, 0, 10), (10, 10, 6), (16, 0, 16)):
            asked = Ranking(k=k, offset=offset, candidates=20, rerank=rerank)
            (result,) = engine.search([SearchQuery(text=HOUR_TEXT, ranking=asked)])
            assert len({hit.video_id for hit in result.hits}) == len(result.hits) == count
        (few,) = engine.search([SearchQuery(text=HOUR_TEXT, ranking=Ranking(k=16, candidates=20, rerank=rerank))])
        asked = Ranking(k=16, candidates=150, rerank="frozen")  # every segment is a candidate
        (all_of_them,) = engine.search([SearchQuery(text=HOUR_TEXT, ranking=asked)])
        if rerank == "frozen":
            assert ids(few) == ids(all_of_them)
        (alike,) = engine.search([SearchQuery(video_id=video_id(1), ranking=Ranking(k=10, candidates=10))])
        assert len({hit.video_id for hit in alike.hits}) == 10
        assert video_id(1) not in {hit.video_id for hit in alike.hits}
    finally:
        engine.close()


def test_a_static_hour_is_one_hit_with_its_moments(hour_store, tiny_encoder):
    engine = Engine(tiny_encoder, lambda: StoreReader.open(hour_store), limits=LIMITS, cache_entries=0)

    def hits(**asked):
        (result,) = engine.search([SearchQuery(text=HOUR_TEXT, ranking=Ranking(candidates=30, **asked))])
        return result.hits

    try:
        for group in ("video", "moment"):
            found = hits(k=10, group=group)
            (hour,) = [hit for hit in found if hit.video_id == video_id(0)]
            assert len(found) == 10
            assert len(hour.moments) == MOST_MOMENTS  # of the 30 candidates, all of which are of the hour
            starts = [moment.start_seconds for moment in hour.moments]
            assert starts == sorted(starts)
            assert all(moment.end_seconds == moment.start_seconds + 30 for moment in hour.moments)
            (own,) = [moment for moment in hour.moments if moment.start_seconds == hour.start_seconds]
            assert own.score == hour.score == max(moment.score for moment in hour.moments)
            others = [hit.moments for hit in found if hit.video_id != video_id(0)]
            assert all(len(moments) == 1 for moments in others)
        plain = hits(k=10, group="segment")
        assert {hit.video_id for hit in plain} == {video_id(0)}
        assert all(hit.moments == () for hit in plain)
    finally:
        engine.close()


def test_moments_that_look_different_are_hits_of_their_own(tmp_path, tiny_encoder):
    """A film of two scenes, the first of which comes back: two hits with three and two moments."""
    first, second = (random_video(np.random.default_rng(seed), tiny_encoder, 0).segments[0] for seed in (1, 2))
    cut = [first, second, first, second, first]
    parts = [
        replace(scene, number=number, start_seconds=10.0 * number, end_seconds=10.0 * number + 10)
        for number, scene in enumerate(cut)
    ]
    film = replace(random_video(np.random.default_rng(1), tiny_encoder, 0), segments=parts)
    settings = StoreSettings(
        model_spec=ModelSpec(),
        fingerprint=tiny_encoder.fingerprint,
        dim=tiny_encoder.dim,
        sampling=tiny_encoder.config.sampling,
    )
    with StoreWriter.open(tmp_path / "store", settings=settings) as writer:
        writer.add_locations([Location(path="/nowhere", video_id=film.video_id, size_bytes=1, modified_ns=1)])
        writer.add_videos([film])
        writer.publish(tiny_encoder)
    engine = Engine(tiny_encoder, lambda: StoreReader.open(tmp_path / "store"), limits=LIMITS, cache_entries=0)
    try:
        queries = [SearchQuery(text="a thing", ranking=Ranking(k=5, group=group)) for group in ("moment", "video")]
        scenes, whole = engine.search(queries)
        starts = sorted([moment.start_seconds for moment in hit.moments] for hit in scenes.hits)
        assert starts == [[0.0, 20.0, 40.0], [10.0, 30.0]]
        (hit,) = whole.hits
        assert [moment.start_seconds for moment in hit.moments] == [0.0, 10.0, 20.0, 30.0, 40.0]
    finally:
        engine.close()


def test_a_text_that_is_read_in_part_is_said_to_be(engine):
    long = "a thing " * 40
    short, cut = engine.search([SearchQuery(text="a thing"), SearchQuery(text=long)])
    assert (short.truncated, cut.truncated) == (False, True)
    (alike,) = engine.search([SearchQuery(video_id=video_id(1))])
    assert not alike.truncated
    (scored,) = engine.rerank([RerankQuery(text=long, segments=(SegmentRef(video_id=video_id(1)),))])
    assert scored.truncated


def test_a_text_in_a_script_that_the_model_does_not_read_is_said_to_be(engine):
    latin, greek = engine.search([SearchQuery(text="a thing"), SearchQuery(text="ένας σκύλος")])
    assert (latin.unknown_script, greek.unknown_script) == (None, "Greek")
    (scored,) = engine.rerank([RerankQuery(text="ένας σκύλος", segments=(SegmentRef(video_id=video_id(1)),))])
    assert scored.unknown_script == "Greek"


def serve(store, encoder, tmp_path, **changes):
    settings = load_settings({"store": store, "jobs_folder": tmp_path / "jobs", "embedded_worker": "off", **changes})
    engine = Engine(
        encoder,
        lambda: StoreReader.open(store, fingerprint=encoder.fingerprint),
        limits=QueryLimits.from_settings(settings),
        cache_entries=100,
    )
    return TestClient(create_app(settings, engine), base_url="http://127.0.0.1:8000")


def test_nothing_is_kept_unless_asked_for(tmp_path, tiny_encoder):
    store = fill_store(tmp_path / "store", tiny_encoder)
    with serve(store, tiny_encoder, tmp_path) as client:
        assert client.post("/v1/search", json={"text": "a private thing"}).status_code == 200
    assert not (store / QUERY_LOG).exists()


def test_embeddings_alone_are_kept_and_become_the_bank(tmp_path, tiny_encoder):
    encoder = with_emcl(tiny_encoder, EMCLConfig(beta=0.0))
    store = fill_store(tmp_path / "store", encoder)
    texts = [f"a private thing with number {n}" for n in range(220)]
    with serve(store, encoder, tmp_path, query_log=210) as client:
        for text in texts:
            assert client.post("/v1/search", json={"text": text}).status_code == 200
    np.testing.assert_allclose(read_query_log(store), encoder.encode_texts(texts[-210:]), rtol=2e-3, atol=2e-3)
    assert b"private" not in (store / QUERY_LOG).read_bytes()
    with StoreWriter.open(store) as writer:
        writer.publish(encoder)
    with StoreReader.open(store) as reader:
        assert "hub bases, 210 past queries" in reader.correction.text()


def test_the_newest_stay_and_a_later_service_goes_on(tmp_path):
    first = QueryLog(tmp_path, 3)
    first.add(np.eye(4, dtype=np.float32))
    first.write()
    later = QueryLog(tmp_path, 3)
    later.add([np.full(4, 2, np.float32)])
    later.write()
    np.testing.assert_array_equal(read_query_log(tmp_path), [*np.eye(4)[2:], np.full(4, 2)])


def test_writing_is_due_every_so_often(tmp_path):
    log = QueryLog(tmp_path, 1000)
    assert [log.add(np.zeros((128, 2), np.float32)) for _ in range(3)] == [False, True, False]
    log.write()
    assert not log.add(np.zeros((128, 2), np.float32))


def test_a_damaged_log_begins_anew(tmp_path):
    (tmp_path / QUERY_LOG).write_bytes(b"nothing")
    log = QueryLog(tmp_path, 5)
    log.add([np.ones(2, np.float32)])
    log.write()
    assert len(read_query_log(tmp_path)) == 1


NONSENSE = ("qwertyuiop zxcvbnm", "xkcdq wvbnt")
ABSENT = ("a chef flips a pancake in a kitchen", "two dogs run along a beach")


@pytest.fixture(scope="module")
def library(tmp_path_factory, validation_folder):
    """Ten clips of the demo's corpus, indexed with the demo model: the folder of the store, and their captions."""
    folder = tmp_path_factory.mktemp("confidence")
    listing = validation_folder / "captions.jsonl"
    before, sys.argv = sys.argv, [
        "emcl", "index", "build", str(validation_folder), "--store", str(folder / "store"), "--model", "demo",
        "--workers", "1", "--captions", str(listing),
    ]  # fmt: skip
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    assert not ended.value.code
    return folder, [json.loads(line)["captions"][0] for line in listing.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def demo(library, tmp_path_factory):
    """A client of a service over it."""
    with serving(library[0], load_encoder("demo", device="cpu"), tmp_path_factory.mktemp("service")) as client:
        yield client


def ask(client, **what):
    answer = client.post("/v1/search", json={"fusion": "visual", **what})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_hits_with_words_of_the_query_fit_whatever_the_pictures_say(demo, library):
    text = library[1][0]
    answer = ask(demo, text=text, fusion="auto", min_confidence=1)
    assert answer["hits"]
    assert all(hit["snippet"] for hit in answer["hits"])
    assert not answer["nothing_fits"]


def test_true_matches_end_above_the_line_nonsense_and_absent_things_below(demo, library):
    for caption in library[1]:
        answer = ask(demo, text=caption, k=1)
        assert answer["hits"][0]["confidence"] >= LINE, caption
        assert not answer["nothing_fits"]
    for text in (*NONSENSE, *ABSENT):
        answer = ask(demo, text=text, k=10)
        assert answer["nothing_fits"], text
        assert len(answer["hits"]) == 10
        assert all(0 <= hit["confidence"] < LINE for hit in answer["hits"])
    assert demo.get("/v1/index").json()["confidence_line"] == LINE


@pytest.mark.parametrize("rerank", ["emcl", "none", "frozen"])
def test_confidence_is_the_same_however_hits_are_ranked(demo, library, rerank):
    def by_video(**how):
        return {hit["video_id"]: hit["confidence"] for hit in ask(demo, text=library[1][0], **how)["hits"]}

    assert by_video(rerank=rerank) == by_video()


def test_hits_below_a_confidence_are_left_out(demo, library):
    text = library[1][0]
    everything = ask(demo, text=text)["hits"]
    middle = sorted(hit["confidence"] for hit in everything)[5]
    some = ask(demo, text=text, min_confidence=middle)
    assert [hit["video_id"] for hit in some["hits"]] == [
        hit["video_id"] for hit in everything if hit["confidence"] >= middle
    ]
    none = ask(demo, text=NONSENSE[0], min_confidence=LINE)
    assert none["hits"] == []
    assert none["nothing_fits"]
    many = ask(demo, texts=[text, NONSENSE[0]], min_confidence=LINE)["results"]
    assert [bool(answer["hits"]) for answer in many] == [True, False]


def test_likeness_to_a_video_has_no_confidence(demo, library):
    video_id = ask(demo, text=library[1][0], k=1)["hits"][0]["video_id"]
    alike = ask(demo, video_id=video_id)
    assert {hit["confidence"] for hit in alike["hits"]} == {None}
    assert not alike["nothing_fits"]
    wrong = demo.post("/v1/search", json={"video_id": video_id, "min_confidence": 0.5})
    assert_problem(wrong, 422, mentions="min_confidence")


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_confidence_is_from_0_to_1(demo, value):
    assert_problem(demo.post("/v1/search", json={"text": "a", "min_confidence": value}), 422, mentions="0 to 1")


def test_an_index_of_an_earlier_version_knows_none(library, demo, tmp_path, monkeypatch):
    from indexer.store import reader

    monkeypatch.setattr(reader.confidence, "CONFIDENCE", "of no version")
    with serving(library[0], load_encoder("demo", device="cpu"), tmp_path) as client:
        answer = ask(client, text="a red star")
        assert {hit["confidence"] for hit in answer["hits"]} == {None}
        assert not answer["nothing_fits"]
        assert client.get("/v1/index").json()["confidence_line"] is None
        wrong = client.post("/v1/search", json={"text": "a", "min_confidence": 0.5})
        assert_problem(wrong, 409, mentions="emcl index rebuild")


def test_the_command_draws_the_line(library, monkeypatch, capsys):
    def run(*arguments):
        command = ["emcl", "search", *arguments, "--store", str(library[0] / "store")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out.splitlines(), said.err

    code, lines, err = run(NONSENSE[0], "-k", "3")
    assert not code
    assert "nothing fits well" in err
    assert lines[1].startswith("-- nothing fits well -")
    assert len(lines) == 5
    code, lines, err = run(library[1][0])
    assert "nothing fits well" not in err
    rule = next(place for place, line in enumerate(lines) if line.startswith("-- these fit less well -"))
    assert float(lines[rule - 1].split()[3]) >= LINE
    assert all(float(line.split()[3]) < LINE for line in lines[rule + 1 :])
    code, lines, _ = run(NONSENSE[0], "--min-confidence", str(LINE))
    assert (code or 0, lines) == (0, ["nothing found"])
    code, _, err = run("--video", "x.mp4", "--min-confidence", "0.5")
    assert code == 2


def test_grouping_keeps_the_best_segment_of_each_video(engine):
    every = SearchQuery(text="a red circle", ranking=Ranking(k=120, candidates=120, group="segment"))
    segments, videos = engine.search([every, replace(every, ranking=replace(every.ranking, group="video"))])
    best = {}
    for hit in segments.hits:
        best.setdefault(hit.video_id, hit)
    assert list(best.values()) == [replace(hit, moments=()) for hit in videos.hits]
    assert len(videos.hits) == VIDEOS
    assert len(segments.hits) == 120


@pytest.mark.parametrize("group", ["video", "segment"])
def test_pages_join_to_the_whole(engine, group):
    whole = Ranking(k=30, candidates=100, group=group)
    pages = [replace(whole, k=10, offset=offset) for offset in (0, 10, 20)]
    results = engine.search([SearchQuery(text="a red circle", ranking=ranking) for ranking in (whole, *pages)])
    assert ids(results[0]) == ids(results[1]) + ids(results[2]) + ids(results[3])


def test_filters_leave_only_matching_videos(engine):
    wanted = VideoFilter(tags=("mod3-0", "mod2-1"), min_seconds=5.0, max_seconds=10.0)
    result = engine.search([SearchQuery(text="anything", ranking=Ranking(k=100), filter=wanted)])[0]
    assert {hit.video_id for hit in result.hits} == {video_id(n) for n in range(VIDEOS) if n % 3 == 0 and n % 2 == 1}
    assert all(hit.duration_seconds == 10.0 and set(hit.tags) >= set(wanted.tags) for hit in result.hits)
    nothing = VideoFilter(tags=("no such tag",))
    assert engine.search([SearchQuery(text="anything", filter=nothing)])[0].hits == ()


def test_fewer_hits_than_asked_for_where_there_are_fewer(engine):
    result = engine.search([SearchQuery(text="anything", ranking=Ranking(k=900, candidates=1000))])[0]
    assert len(result.hits) == VIDEOS


@pytest.mark.parametrize("segment", [None, 1])
def test_more_like_this_leaves_the_video_itself_out(engine, segment):
    query = SearchQuery(video_id=video_id(5), segment=segment, ranking=Ranking(k=50, candidates=50, group="segment"))
    result = engine.search([query])[0]
    assert len(result.hits) == 50
    assert video_id(5) not in {hit.video_id for hit in result.hits}


def test_unknown_videos_and_segments_are_named(engine):
    with pytest.raises(NotFound, match="no video"):
        engine.search([SearchQuery(video_id="0" * 63 + "x")])
    with pytest.raises(NotFound, match="none with number 7"):
        engine.search([SearchQuery(video_id=video_id(5), segment=7)])


def test_an_index_of_captions_alone_has_no_videos_to_find(tmp_path, tiny_encoder):
    path = fill_store(tmp_path / "store", tiny_encoder, videos=0, captions=3)
    engine = Engine(tiny_encoder, lambda: StoreReader.open(path), limits=LIMITS, cache_entries=0)
    assert engine.search([SearchQuery(text="anything")])[0].hits == ()
    assert engine.probe().hits == ()
    result = engine.search_uploads([upload(1)])[0]
    assert (len(result.captions), result.hits) == (3, ())
    engine.close()


def test_an_index_of_videos_alone_has_no_captions_to_find(tmp_path, tiny_encoder):
    path = fill_store(tmp_path / "store", tiny_encoder, videos=3, captions=0)
    engine = Engine(tiny_encoder, lambda: StoreReader.open(path), limits=LIMITS, cache_entries=0)
    result = engine.search_uploads([upload(1)])[0]
    assert (result.captions, len(result.hits)) == ((), 3)
    engine.close()


def test_reload_serves_the_new_generation_and_lets_old_queries_end(tmp_path, tiny_encoder):
    path = fill_store(tmp_path / "store", tiny_encoder, videos=2, captions=0)
    engine = Engine(tiny_encoder, lambda: StoreReader.open(path), limits=LIMITS, cache_entries=0)
    with StoreWriter.open(path) as writer:
        writer.remove_videos([video_id(0)])
        writer.publish(tiny_encoder)
    with engine.live.lease() as old:
        engine.reload()
        assert len(engine.search([SearchQuery(text="anything")])[0].hits) == 1
        assert len(old.reader.list_videos()) == 2  # still open for requests that began with it
    with pytest.raises((ValueError, sqlite3.Error), match="closed"):
        old.reader.list_videos()
    engine.close()


def test_a_generation_that_cannot_be_opened_leaves_the_present_one(tmp_path, tiny_encoder):
    path = fill_store(tmp_path / "store", tiny_encoder, videos=3, captions=0)
    engine = Engine(
        tiny_encoder,
        lambda: StoreReader.open(path, fingerprint=tiny_encoder.fingerprint),
        limits=LIMITS,
        cache_entries=0,
    )
    (path / "CURRENT").write_text("000009-gone\n")
    with pytest.raises(Conflict, match="the present generation is still served"):
        engine.reload()
    assert len(engine.search([SearchQuery(text="anything")])[0].hits) == 3
    engine.close()


@pytest.mark.parametrize(
    "query",
    [
        SearchQuery(),
        SearchQuery(text="a", video_id=video_id(1)),
        SearchQuery(text=" \n"),
        SearchQuery(text="a" * 201),
        SearchQuery(text="a", ranking=Ranking(k=0)),
        SearchQuery(text="a", ranking=Ranking(k=11, candidates=10)),
        SearchQuery(text="a", ranking=Ranking(k=5, offset=6, candidates=10)),
        SearchQuery(text="a", ranking=Ranking(offset=-1)),
        SearchQuery(text="a", ranking=Ranking(candidates=1001)),
        SearchQuery(text="a", filter=VideoFilter(min_seconds=3.0, max_seconds=2.0)),
        SearchQuery(text="a", filter=VideoFilter(min_seconds=float("nan"))),
    ],
)
def test_queries_over_the_limits_are_refused_with_the_limit(query):
    with pytest.raises(Unprocessable) as refusal:
        LIMITS.check_search(query)
    assert refusal.value.expected
    assert refusal.value.next_step


def test_the_engine_knows_no_web_framework_and_loads_nothing_heavy():
    code = (
        "import sys, service.search.engine; "
        "print([m for m in ('fastapi', 'starlette', 'torch', 'faiss') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
