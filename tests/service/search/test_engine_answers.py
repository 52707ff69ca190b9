"""The engine's answers: groups, pages, filters, limits, unknown videos; stores that lack something or change."""

import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest
from engine_support import LIMITS, VIDEOS, fill_store, ids, upload, video_id

from indexer.store.reader import StoreReader
from indexer.store.writer import StoreWriter
from service.errors import Conflict, NotFound, Unprocessable
from service.search.engine import Engine
from service.search.values import Ranking, SearchQuery, VideoFilter


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_encoder):
    return fill_store(tmp_path_factory.mktemp("engine") / "store", tiny_encoder)


@pytest.fixture
def engine(store, tiny_encoder):
    made = Engine(tiny_encoder, lambda: StoreReader.open(store), limits=LIMITS, cache_entries=0)
    yield made
    made.close()


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
