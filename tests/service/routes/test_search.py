"""Search over HTTP: the shape of answers, filters and pages, and what is said of wrong and hostile queries."""

import json

import pytest
from service_support import assert_problem, assert_same_hits, make_keys, serving


def test_search_answers_hits_with_both_scores_and_the_moment(client):
    asked = {"text": "a red circle moves left", "k": 3, "fusion": "visual"}
    answer = client.post("/v1/search", json=asked).json()
    assert set(answer) == {"hits", "source", "truncated", "unknown_script", "nothing_fits"}
    assert len(answer["hits"]) == 3
    for hit in answer["hits"]:
        assert set(hit) == {
            "video_id", "segment", "start", "end", "score", "stage1_score", "moment", "frame_weights", "title",
            "duration_seconds", "tags", "matched", "snippet", "passage", "thumbnail_url", "stream_url", "confidence",
            "path", "moments",
        }  # fmt: skip
        assert hit["start"] <= hit["moment"] <= hit["end"]
        heaviest = max(hit["frame_weights"], key=lambda frame: frame["weight"])
        assert heaviest["time"] == hit["moment"]
        assert client.get(hit["thumbnail_url"]).status_code == 200
        assert client.head(hit["stream_url"]).status_code == 200
    found = [hit["score"] for hit in answer["hits"]]
    assert found == sorted(found, reverse=True)
    assert {"encode", "candidates", "rerank"} <= set(answer["source"]["stage_ms"])


def test_many_texts_get_an_answer_each_in_order(client):
    texts = ["a red circle", "a blue square", "a red circle"]
    answers = client.post("/v1/search", json={"texts": texts, "k": 2}).json()["results"]
    alone = [client.post("/v1/search", json={"text": text, "k": 2}).json() for text in texts]
    assert answers[0]["hits"] == answers[2]["hits"]
    for one, other in zip(answers, alone, strict=True):
        assert_same_hits(one["hits"], other["hits"])


def test_filters_paging_grouping_and_ranking_reach_the_engine(client):
    whole = client.post("/v1/search", json={"text": "a", "k": 6, "rerank": "frozen", "group": "segment"}).json()["hits"]
    page = client.post("/v1/search", json={"text": "a", "k": 2, "offset": 2, "rerank": "frozen"}).json()["hits"]
    assert_same_hits(page, whole[2:4])
    assert all(hit["score"] == hit["stage1_score"] for hit in whole)
    odd = client.post("/v1/search", json={"text": "a", "filter": {"tags": ["odd"]}}).json()["hits"]
    assert len(odd) == 3
    assert all("odd" in hit["tags"] for hit in odd)


def test_more_like_an_indexed_video(client, video_id):
    hits = client.post("/v1/search", json={"video_id": video_id}).json()["hits"]
    assert len(hits) == 5
    assert video_id not in {hit["video_id"] for hit in hits}


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "\\ud800"}',
        b'{"text": "a", "filter": {"tags": ["\\udfff"]}}',
        b'{"text": "a\\u0000b"}',
        b'{"text": "\xff\xfe"}',
        b"[" * 100_000,
        b'{"text": "a", "k": 1e400}',
        b'{"text": "a", "k": ' + b"9" * 5000 + b"}",
        b'{"text": "a", "filter": {"min_seconds": 1e999}}',
        b'{"text": "a", "filter": {"min_seconds": NaN}}',
        b'{"text": "a", "offset": 99999999999999999999999, "candidates": 5}',
        b'{"text": "a", "text": "b"}',
        b"null",
        b"",
    ],
)
def test_hostile_bodies_get_an_answer_or_a_reason(client, body):
    response = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400, 422), response.text
    if response.status_code != 200:
        assert_problem(response, response.status_code)


def test_rerank_scores_the_segments_that_are_named(client):
    ids = [video["video_id"] for video in client.get("/v1/videos").json()["videos"]]
    segments = [{"video_id": video_id} for video_id in ids[:4]]
    hits = client.post("/v1/rerank", json={"text": "a red circle", "segments": segments}).json()["hits"]
    assert {hit["video_id"] for hit in hits} == set(ids[:4])
    assert_problem(client.post("/v1/rerank", json={"text": "a", "segments": []}), 422)
    assert_problem(client.post("/v1/rerank", json={"text": "a", "segments": segments + segments[:1]}), 422)
    assert_problem(client.post("/v1/rerank", json={"text": "a", "segments": [{"video_id": "0" * 64}]}), 404)


def test_embeddings_are_unit_vectors(client):
    answer = client.post("/v1/embeddings", json={"texts": ["a red circle", "a"]}).json()
    assert [len(row) for row in answer["embeddings"]] == [answer["dim"]] * 2
    assert sum(value**2 for value in answer["embeddings"][0]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "none of text, texts and video_id"),
        ({"text": "a", "texts": ["b"]}, "text and texts"),
        ({"text": ""}, "an empty text"),
        ({"texts": []}, "0 texts"),
        ({"texts": ["a"] * 9}, "9 texts"),
        ({"texts": ["a", " "]}, "an empty text"),
        ({"text": "a" * 101}, "101 characters"),
        ({"text": "a", "k": 101}, "k=101"),
        ({"text": "a", "k": 0}, "k=0"),
        ({"text": "a", "offset": -1}, "offset=-1"),
        ({"text": "a", "candidates": 10**6}, "candidates=1000000"),
        ({"text": "a", "k": "ten"}, "body.k"),
        ({"text": 5}, "body.text"),
        ({"text": "a", "rerank": "best"}, "body.rerank"),
        ({"text": "a", "colour": "red"}, "body.colour"),
        ({"text": "a", "filter": {"tag": "x"}}, "body.filter.tag"),
        ({"text": "a", "filter": {"min_seconds": 3, "max_seconds": 2}}, "a duration from 3"),
        ({"text": "a", "filter": {"recorded_after": "yesterday"}}, "'yesterday' is not a date; expected 2024-05-01"),
        ({"text": "a", "filter": {"recorded_before": "2024-13-01"}}, "is not a date"),
        ({"text": "a", "filter": {"recorded_before": "2024-01-01T00:00:00+99:00"}}, "is not a date"),
        ({"text": "a", "filter": {"recorded_before": "9999-12-31"}}, "is not a date"),
        (
            {"text": "a", "filter": {"recorded_after": "2024-03-01", "recorded_before": "2024-02-01"}},
            "a time of recording that ends before it begins",
        ),
        ({"text": "a", "filter": {"folder": "films"}}, "the folder 'films'"),
        ({"text": "a", "filter": {"min_height": 0}}, "a height of 0"),
        ({"text": "a", "filter": {"min_height": "HD"}}, "body.filter.min_height"),
        ({"video_id": "x"}, "body.video_id"),
    ],
)
def test_wrong_queries_are_told_what_is_wrong(client, body, complaint):
    assert complaint in assert_problem(client.post("/v1/search", json=body), 422, slug="unprocessable")["detail"]


def test_an_unknown_video_to_be_like_is_not_found(client, video_id):
    assert_problem(client.post("/v1/search", json={"video_id": "f" * 64}), 404)
    assert_problem(client.post("/v1/search", json={"video_id": video_id, "segment": 9}), 404)


def test_bodies_that_are_no_json_or_too_large(client):
    json_type = {"Content-Type": "application/json"}
    assert_problem(client.post("/v1/search", content=b"{", headers=json_type), 422)
    assert_problem(client.post("/v1/search", content=b'{"text": "a"}', headers={"Content-Type": "text/plain"}), 415)
    assert_problem(client.post("/v1/search", content=b'{"text": "a"}'), 415)
    large = json.dumps({"text": "a" * 2**20}).encode()
    assert_problem(client.post("/v1/search", content=large, headers=json_type), 413, slug="too-large")
    pieces = (large[start : start + 65536] for start in range(0, len(large), 65536))
    assert_problem(client.post("/v1/search", content=pieces, headers=json_type), 413, slug="too-large")


def test_words_of_captions_tags_and_names_are_matched_and_shown(client):
    (caption,) = client.get("/v1/captions", params={"limit": 1}).json()["captions"]
    hits = client.post("/v1/search", json={"text": caption["text"], "k": 3}).json()["hits"]
    assert hits[0]["video_id"] == caption["video_id"]
    assert hits[0]["matched"] == ["visual", "caption"]
    assert "".join(part["text"] for part in hits[0]["snippet"]) == caption["text"]
    assert any(part["match"] for part in hits[0]["snippet"])
    (tagged, *_) = client.post("/v1/search", json={"text": "odd", "fusion": "text"}).json()["hits"]
    assert tagged["matched"] == ["tag"]
    assert tagged["score"] == 1
    assert tagged["start"] <= tagged["moment"] <= tagged["end"]


def test_only_words_that_are_texts_can_be_asked_for(client, video_id):
    assert_problem(client.post("/v1/search", json={"video_id": video_id, "fusion": "text"}), 422, mentions="fusion")
    assert_problem(client.post("/v1/search", json={"text": "a", "fusion": "both"}), 422, mentions="fusion")
    assert client.post("/v1/search", json={"video_id": video_id}).status_code == 200


@pytest.mark.parametrize("fusion", ["auto", "text"])
@pytest.mark.parametrize("text", ['"', "a\0b", 'x" OR "y', "NEAR(a b)", "*", "-", "a" * 100, "\u202e", "%00", "' --"])
def test_no_text_breaks_the_search_for_words(client, text, fusion):
    answer = client.post("/v1/search", json={"text": text, "fusion": fusion})
    assert answer.status_code == 200, answer.text


def test_paths_are_shown_to_those_alone_who_may_know_them(client, clip_store, tiny_encoder, tmp_path):
    asked = {"text": "a red circle", "k": 1}
    [hit] = client.post("/v1/search", json=asked).json()["hits"]
    assert hit["path"] == str(clip_store / "clips" / f"{hit['title']}.mp4")  # no keys are required
    _, tokens = make_keys(tmp_path)
    with serving(clip_store, tiny_encoder, tmp_path, require_keys=True) as guarded:
        for scope, token in tokens.items():
            for path, body in (
                ("/v1/search", asked),
                ("/v1/rerank", {"text": "a", "segments": [{"video_id": hit["video_id"]}]}),
            ):
                answer = guarded.post(path, json=body, headers={"Authorization": f"Bearer {token}"})
                guarded.cookies.clear()
                assert (answer.json()["hits"][0]["path"] is not None) == (scope == "admin")
                assert (str(clip_store) in answer.text) == (scope == "admin")
