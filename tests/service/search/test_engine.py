"""The engine: answers that depend on nothing but their query, and what each way of ranking means."""

from dataclasses import replace

import numpy as np
import pytest
from engine_support import CAPTIONS, LIMITS, fill_store, ids, upload, video_id
from numeric_support import tolerance
from service_support import random_video

from indexer.locations import Location
from indexer.store.config import ModelSpec, StoreSettings
from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from service.search import ranking as ranking_module
from service.search.engine import Engine
from service.search.values import Ranking, RerankQuery, SearchQuery, SegmentRef, UploadQuery

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
