"""The engine: answers that depend on nothing but their query, and what each way of ranking means."""

import sqlite3
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from indexer.config import ModelSpec, StoreSettings
from indexer.rows import Location
from indexer.store import StoreReader
from indexer.writer import EncodedSegment, EncodedVideo, StoreWriter
from service import ranking as ranking_module
from service.engine import Engine
from service.errors import Conflict, NotFound, Unprocessable
from service.query import (
    QueryLimits,
    Ranking,
    RerankQuery,
    SearchQuery,
    SegmentRef,
    UploadQuery,
    VideoFilter,
)

LIMITS = QueryLimits(max_texts=64, max_text_chars=200, max_candidates=1000)
VIDEOS, CAPTIONS = 60, 50


def video_id(number):
    return f"{number:064x}"


def fill_store(path, encoder, videos=VIDEOS, captions=CAPTIONS):
    """A store of random features: videos of 1 to 3 segments of 1 to 6 frames, captions encoded by the model."""
    rng = np.random.default_rng(7)
    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=encoder.fingerprint, dim=encoder.dim, sampling=encoder.config.sampling
    )
    with StoreWriter.open(path, settings=settings) as writer:
        names = [video_id(number) for number in range(videos)]
        if names:
            places = [
                Location(path=f"/nowhere/v{n}.mp4", video_id=name, size_bytes=1, modified_ns=1)
                for n, name in enumerate(names)
            ]
            writer.add_locations(places)
            writer.add_videos([_random_video(rng, encoder, n, name) for n, name in enumerate(names)])
            writer.add_tags({name: [f"mod3-{n % 3}", f"mod2-{n % 2}"] for n, name in enumerate(names)})
        texts = [f"caption number {number} of a thing" for number in range(captions)]
        if texts:
            writer.add_captions([(None, text) for text in texts], encoder.encode_texts(texts))
        writer.publish(encoder)
    return path


def _random_video(rng, encoder, number, name):
    segments = []
    for part in range(1 + number % 3):
        frames = int(rng.integers(1, 7))
        features = rng.normal(size=(1, frames, encoder.dim)).astype(np.float32)
        segments.append(
            EncodedSegment(
                number=part,
                start_seconds=10.0 * part,
                end_seconds=10.0 * part + 10,
                timestamps_seconds=10.0 * part + np.arange(frames) * 1.5,
                features_FD=features[0],
                pooled_D=encoder.pool(features, np.ones((1, frames), bool))[0],
            )
        )
    return EncodedVideo(
        video_id=name,
        name=name,
        duration_seconds=10.0 * len(segments),
        width=64,
        height=48,
        reason=None,
        segments=segments,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_encoder):
    return fill_store(tmp_path_factory.mktemp("engine") / "store", tiny_encoder)


@pytest.fixture
def engine(store, tiny_encoder):
    made = Engine(tiny_encoder, lambda: StoreReader.open(store), limits=LIMITS, cache_entries=0)
    yield made
    made.close()


def ids(result):
    return [(hit.video_id, hit.segment) for hit in result.hits]


def scores(result):
    return np.array([(hit.score, hit.stage1_score) for hit in result.hits])


def upload(seed, frames=4, size=32, **changes):
    rng = np.random.default_rng(seed)
    return UploadQuery(
        frames_FSSC=rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8),
        timestamps_seconds=np.arange(frames, dtype=np.float64),
        ranking=Ranking(**changes),
    )


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
    np.testing.assert_allclose(scores(alone), scores(among), atol=1e-5)
    for one, other in zip(alone.hits, among.hits, strict=True):
        np.testing.assert_allclose(one.frames.weights, other.frames.weights, atol=1e-5)


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
    np.testing.assert_allclose([hit.score for hit in result.hits], np.sort(cosines)[::-1][:100], atol=1e-5)


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


def test_grouping_keeps_the_best_segment_of_each_video(engine):
    every = SearchQuery(text="a red circle", ranking=Ranking(k=120, candidates=120, group="segment"))
    segments, videos = engine.search([every, replace(every, ranking=replace(every.ranking, group="video"))])
    best = {}
    for hit in segments.hits:
        best.setdefault(hit.video_id, hit)
    assert list(best.values()) == list(videos.hits)
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
    from model.preprocess import resize_and_crop
    from model.video import decode

    engine = Engine(tiny_encoder, lambda: StoreReader.open(clip_store / "store"), limits=LIMITS, cache_entries=0)
    batch = decode(clip_store / "clips" / "clip_3.mp4", sampling=engine.sampling)
    query = UploadQuery(
        frames_FSSC=resize_and_crop(batch.frames, tiny_encoder.image_size),
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
        features = tiny_encoder.encode_videos(query.frames_FSSC[None], np.ones((1, 5), bool))
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
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    best = engine.search([SearchQuery(text="a red circle", ranking=Ranking(k=1, rerank="frozen"))])[0].hits[0]
    with engine.live.lease() as generation:
        found, _ = generation.reader.search_videos(rows[:1], 1)
    assert best.score == pytest.approx(float(found[0, 0]), abs=1e-6)
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
        assert len(old.reader.list_videos()) == 2  # still open for whoever began with it
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
    with pytest.raises(Conflict, match="present generation is served on"):
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
        "import sys, service.engine; print([m for m in ('fastapi', 'starlette', 'torch', 'faiss') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
