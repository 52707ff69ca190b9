"""Words beside pictures: fused rankings, the visual one untouched where no word matches, and words alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from service_support import LIMITS, fill_store, video_id

from indexer.sources.transcripts import Cue
from indexer.store.reader import StoreReader
from indexer.store.records import TranscriptRow
from indexer.store.writer import StoreWriter
from service.errors import Conflict, Unprocessable
from service.search.engine import Engine
from service.search.fusion import FusionWeights
from service.search.values import Ranking, SearchQuery, VideoFilter

VIDEOS = 40
CAPTIONS = {
    number: f"a {colour} {what} {does}"
    for number, (colour, what, does) in enumerate(
        (colour, what, does)
        for colour in ("white", "brown", "grey", "striped")
        for what in ("cockatoo", "dog", "cat", "horse", "whale")
        for does in ("sleeps on a sofa", "runs over the beach")
    )
}
"""One for each video: 40 texts that share most of their words."""


@pytest.fixture(scope="module")
def store(tiny_encoder, tmp_path_factory) -> Path:
    return fill_store(tmp_path_factory.mktemp("fusion") / "store", tiny_encoder, videos=VIDEOS, captions=0)


@pytest.fixture(scope="module")
def captioned(store, tiny_encoder, tmp_path_factory) -> Path:
    path = fill_store(tmp_path_factory.mktemp("captioned") / "store", tiny_encoder, videos=VIDEOS, captions=0)
    with StoreWriter.open(path) as writer:
        texts = [(video_id(number), text) for number, text in CAPTIONS.items()]
        writer.add_captions(texts, tiny_encoder.encode_texts([text for _, text in texts]))
    return path


def open_engine(store: Path, encoder, weights: FusionWeights | None = None) -> Engine:
    opened = lambda: StoreReader.open(store)  # noqa: E731
    return Engine(encoder, opened, limits=LIMITS, cache_entries=100, fusion=weights)


@pytest.fixture(scope="module")
def plain(store, tiny_encoder):
    engine = open_engine(store, tiny_encoder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(captioned, tiny_encoder):
    engine = open_engine(captioned, tiny_encoder)
    yield engine
    engine.close()


def search(engine: Engine, text: str, *, wanted: VideoFilter | None = None, **ranking: object):
    query = SearchQuery(text=text, ranking=Ranking(**ranking), filter=wanted or VideoFilter())
    return engine.search([query])[0].hits


def test_each_video_is_found_first_by_its_own_caption(engine):
    texts = list(CAPTIONS.values())
    queries = [SearchQuery(text=text, ranking=Ranking(fusion="auto")) for text in texts]
    for number, result in enumerate(engine.search(queries)):
        assert result.hits[0].video_id == video_id(number), texts[number]
        assert "caption" in result.hits[0].matched
        assert "".join(part for part, _ in result.hits[0].snippet) == texts[number]


@pytest.mark.parametrize("rerank", ["emcl", "none", "frozen"])
@pytest.mark.parametrize("group", ["video", "segment"])
def test_without_captions_the_ranking_is_the_visual_one_to_the_bit(plain, rerank, group):
    texts = [*list(CAPTIONS.values())[:6], "v", "nothing of the kind"]
    asked = {"rerank": rerank, "group": group, "k": 12, "candidates": 30}
    auto = plain.search([SearchQuery(text=text, ranking=Ranking(fusion="auto", **asked)) for text in texts])
    visual = plain.search([SearchQuery(text=text, ranking=Ranking(fusion="visual", **asked)) for text in texts])
    assert [result.hits for result in auto] == [result.hits for result in visual]


def test_a_text_without_matching_words_is_ranked_visually_beside_ones_that_match(engine):
    """They share a batch, and the one is no part of what happens to the others."""
    texts = ["submarine volcano", "a white cockatoo", "an unheard of thing"]
    auto = engine.search([SearchQuery(text=text, ranking=Ranking(fusion="auto")) for text in texts])
    for place in (0, 2):
        assert auto[place].hits == search(engine, texts[place], fusion="visual")
        assert {hit.matched for hit in auto[place].hits} == {("visual",)}
    assert auto[1].hits == search(engine, texts[1], fusion="auto")
    assert "cockatoo" in CAPTIONS[int(auto[1].hits[0].video_id, 16)]


def test_videos_that_only_words_find_have_visual_scores(engine):
    text = CAPTIONS[7]
    hits = search(engine, text, fusion="auto", k=5, candidates=5)
    by_words = {hit.video_id: hit for hit in hits if "visual" not in hit.matched}
    assert by_words
    everything = search(engine, text, fusion="visual", k=200, candidates=200, group="segment")
    stage1 = {(hit.video_id, hit.segment): hit.stage1_score for hit in everything}
    for name, hit in by_words.items():
        best = max(score for (video, _), score in stage1.items() if video == name)
        assert hit.stage1_score == pytest.approx(best, abs=1e-5) == stage1[name, hit.segment]


def test_pages_of_a_fused_ranking_join_and_hold_each_video_once(engine):
    whole = search(engine, "a brown dog", fusion="auto", k=30)
    pages = [search(engine, "a brown dog", fusion="auto", k=10, offset=start) for start in range(0, 30, 10)]
    assert len({hit.video_id for hit in whole}) == 30
    assert [hit.video_id for page in pages for hit in page] == [hit.video_id for hit in whole]


def test_fused_results_are_per_video(engine):
    assert len({hit.video_id for hit in search(engine, "a dog", fusion="auto", k=25, candidates=25)}) == 25


def test_filters_hold_for_what_words_find(engine):
    wanted = VideoFilter(tags=("mod2-1",))
    for fusion in ("auto", "text"):
        hits = search(engine, CAPTIONS[4], fusion=fusion, wanted=wanted)
        assert hits
        assert all("mod2-1" in hit.tags for hit in hits)
    assert search(engine, CAPTIONS[5], fusion="auto", wanted=wanted)[0].video_id == video_id(5)


def test_weights_decide_between_the_rankings(captioned, tiny_encoder):
    text = CAPTIONS[9]
    for weights, fusion in ((FusionWeights(text=0.0), "visual"), (FusionWeights(visual=0.0), "text")):
        engine = open_engine(captioned, tiny_encoder, weights)
        fused, alone = (search(engine, text, fusion=how, k=3) for how in ("auto", fusion))
        engine.close()
        shared = 3 if fusion == "visual" else 1  # below the best, words alone also rank half matches
        assert [hit.video_id for hit in fused][:shared] == [hit.video_id for hit in alone][:shared]


def test_words_alone_do_not_encode(captioned, tiny_encoder, monkeypatch):
    engine = open_engine(captioned, tiny_encoder)
    monkeypatch.setattr(type(tiny_encoder), "encode_texts", lambda *_: pytest.fail("the model was used"))
    hits = search(engine, "striped whale", fusion="text")
    engine.close()
    assert [CAPTIONS[int(hit.video_id, 16)] for hit in hits][:2] == [CAPTIONS[39], CAPTIONS[38]] or [
        CAPTIONS[int(hit.video_id, 16)] for hit in hits
    ][:2] == [CAPTIONS[38], CAPTIONS[39]]
    assert hits[0].score == pytest.approx(1)
    assert hits[0].matched == ("caption",)
    assert np.all(np.diff([hit.score for hit in hits]) <= 0)
    assert search(open_engine(captioned, tiny_encoder), "submarine", fusion="text") == ()


def test_words_alone_need_a_text_and_a_store_with_documents(captioned, tiny_encoder, monkeypatch):
    with pytest.raises(Unprocessable, match="video_id"):
        LIMITS.check_search(SearchQuery(video_id=video_id(1), ranking=Ranking(fusion="text")))
    monkeypatch.setattr(StoreReader, "has_words", False)
    engine = open_engine(captioned, tiny_encoder)
    with pytest.raises(Conflict, match="without search by words") as caught:
        search(engine, "dog", fusion="text")
    assert "emcl index build" in caught.value.next_step
    engine.close()


TALK = "the tentacles of a giant squid"


@pytest.fixture(scope="module")
def spoken(tiny_encoder, tmp_path_factory) -> Path:
    """Three segments a video; in the last second of one, something is said."""
    path = fill_store(tmp_path_factory.mktemp("spoken") / "store", tiny_encoder, videos=VIDEOS, captions=0)
    with StoreReader.open(path) as reader:
        last = reader.video(video_id(2)).segments[-1]
    cue = Cue(start_seconds=last.start_seconds + 0.25, end_seconds=last.end_seconds, text=TALK)
    row = TranscriptRow(language="en", origin="file", source="/2.srt", version="", cues=(cue,))
    with StoreWriter.open(path) as writer:
        writer.set_transcripts({video_id(2): [row]})
    return path


@pytest.mark.parametrize("candidates", [1, 30])
@pytest.mark.parametrize("fusion", ["auto", "text"])
def test_a_hit_by_what_is_said_is_the_segment_with_its_moment(spoken, tiny_encoder, fusion, candidates):
    engine = open_engine(spoken, tiny_encoder)
    (hit, *_) = search(engine, "giant squid tentacles", fusion=fusion, k=1, candidates=candidates)
    with StoreReader.open(spoken) as reader:
        last = reader.video(video_id(2)).segments[-1]
    engine.close()
    assert hit.video_id == video_id(2)
    assert hit.segment == last.number > 0
    assert "transcript" in hit.matched
    assert hit.passage == (last.start_seconds + 0.25, last.end_seconds)
    assert hit.moment_seconds == last.start_seconds + 0.25
    assert "".join(text for text, _ in hit.snippet) == TALK


def test_other_segments_of_the_video_do_not_claim_what_is_said(spoken, tiny_encoder):
    engine = open_engine(spoken, tiny_encoder)
    hits = search(engine, "giant squid tentacles", fusion="auto", k=200, candidates=200, group="segment")
    engine.close()
    own = [hit for hit in hits if hit.video_id == video_id(2)]
    assert len(own) > 1
    assert [hit.segment for hit in own if hit.passage] == [max(hit.segment for hit in own)]
    assert {hit.matched for hit in own if not hit.passage} == {("visual",)}
    assert all(not hit.snippet and hit.moment_seconds == hit.frames.moment_seconds for hit in own if not hit.passage)


@pytest.mark.slow
def test_each_real_clip_is_found_first_by_its_own_caption(real_clips: Path, tmp_path: Path):
    from service.local import open_library

    captions = [json.loads(line) for line in (real_clips / "captions.jsonl").read_text().splitlines()]
    with open_library(tmp_path / "store", model="demo") as library:
        library.index([real_clips])
        texts = [(Path(one["video"]).stem, text) for one in captions for text in one["captions"]]
        hidden = [library.search(text, k=15) for _, text in texts if not library.search(text, fusion="text")]
        visual = [library.search(text, k=15, fusion="visual") for _, text in texts]
        for text, ranked in zip(hidden, visual, strict=False):
            assert len(text) == len(ranked) == 15
        library.index([real_clips], captions=real_clips / "captions.jsonl")
        assert [library.search(text)[0].title for _, text in texts] == [title for title, _ in texts]
