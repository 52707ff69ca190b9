"""clip-retrieval's client works against the service: its requests, replayed, and the real one if installed."""

import importlib.util
import json
from pathlib import Path

import httpx
import pytest
from service_support import assert_problem, serving

# What ClipClient 2.45 sends: json.dumps as a plain string, so that no Content-Type goes with it.
SENT = {
    "text": "a red circle",
    "image": None,
    "image_url": None,
    "embedding_input": None,
    "deduplicate": True,
    "use_safety_model": True,
    "use_violence_detector": True,
    "indice_name": "videos",
    "use_mclip": False,
    "aesthetic_score": 9,
    "aesthetic_weight": 0.5,
    "modality": "image",
    "num_images": 4,
    "num_result_ids": 4,
}
METADATA = {"url", "caption", "video_id", "segment", "start", "end", "title", "tags"}


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder, tmp_path_factory):
    with serving(clip_store, tiny_encoder, tmp_path_factory.mktemp("service")) as made:
        yield made


def knn(client, **changes):
    return client.post("/knn-service", content=json.dumps({**SENT, **changes}))


def test_a_text_finds_what_search_finds_with_the_same_scores(client):
    response = knn(client)
    assert response.status_code == 200, response.text
    found = response.json()
    asked = {"text": "a red circle", "k": 4, "fusion": "visual"}
    expected = client.post("/v1/search", json=asked).json()["hits"]
    assert [hit["video_id"] for hit in found] == [hit["video_id"] for hit in expected]
    assert [hit["similarity"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
    for hit in found:
        assert set(hit) == {"id", "similarity"} | METADATA
        assert isinstance(hit["id"], int)
        video = client.get(f"/v1/videos/{hit['video_id']}").json()
        assert hit["caption"] == video["captions"][0]
        assert hit["url"].startswith("http://testserver/v1/videos/")
        assert client.get(hit["url"]).status_code == 200


def test_what_is_not_applied_is_named_in_the_answer(client):
    assert knn(client).headers["x-not-applied"] == "use_safety_model, use_violence_detector, aesthetic_score"
    off = {"use_safety_model": False, "use_violence_detector": False, "aesthetic_score": ""}
    assert "x-not-applied" not in knn(client, **off).headers


def test_metadata_goes_with_the_first_images_only(client):
    found = knn(client, num_images=2, num_result_ids=5).json()
    assert len(found) == 5
    assert [set(hit) == {"id", "similarity"} for hit in found] == [False, False, True, True, True]
    assert found[:2] == knn(client, num_images=2, num_result_ids=2).json()


def test_an_embedding_finds_its_own_text_by_the_index(client):
    row = client.post("/v1/embeddings", json={"texts": ["a red circle"]}).json()["embeddings"][0]
    expected = client.post("/v1/search", json={"text": "a red circle", "k": 4, "rerank": "frozen"}).json()["hits"]
    for scale in (1, 7.5, 1e300, 1e-300):
        found = knn(client, text=None, embedding_input=[scale * value for value in row]).json()
        assert [hit["video_id"] for hit in found] == [hit["video_id"] for hit in expected]
        assert [hit["similarity"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-5)
        assert set(found[0]) == {"id", "similarity"} | METADATA


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"text": None}, "neither or both"),
        ({"embedding_input": [0.0] * 32}, "neither or both"),
        ({"text": None, "image": "aGVsbG8="}, "a picture"),
        ({"text": None, "image_url": "https://example.com/a.jpg"}, "a URL"),
        ({"text": None, "embedding_input": [1.0] * 5}, "5 numbers"),
        ({"text": None, "embedding_input": [0.0] * 32}, "zero or not finite"),
        ({"text": None, "embedding_input": [float("inf")] * 32}, "zero or not finite"),
        ({"modality": "text"}, "modality text"),
        ({"use_mclip": True}, "use_mclip"),
        ({"num_images": 0}, "num_images"),
        ({"num_result_ids": 10**6}, "candidates=1000000"),
        ({"num_result_ids": 10**6, "text": None, "embedding_input": [1.0] * 32}, "candidates=1000000"),
        ({"text": "x" * 5000}, "5000 characters"),
        ({"nprobe": 3}, "nprobe"),
    ],
)
def test_what_cannot_be_done_is_refused_and_says_what_to_do(client, changes, complaint):
    assert complaint in assert_problem(knn(client, **changes), 422, slug="unprocessable")["detail"]


def test_unknown_indices_and_ids_are_not_found(client):
    assert_problem(knn(client, indice_name="laion5B"), 404, slug="not-found")
    assert_problem(client.post("/metadata", content='{"ids": [99999], "indice_name": "videos"}'), 404)
    assert_problem(client.post("/metadata", content='{"ids": [1], "indice_name": "other"}'), 404)
    assert_problem(client.post("/metadata", content='{"ids": "all"}'), 422)
    for number in (-1, 2**63, -(10**30)):
        assert_problem(client.post("/metadata", content=f'{{"ids": [{number}]}}'), 422)


def test_the_other_two_routes_have_their_shapes(client):
    assert client.get("/indices-list").json() == ["videos"]
    found = knn(client, num_images=3).json()
    ids = [found[2]["id"], found[0]["id"]]
    described = client.post("/metadata", content=json.dumps({"ids": ids, "indice_name": "videos"})).json()
    assert [entry["id"] for entry in described] == ids
    assert described[0]["metadata"]["video_id"] == found[2]["video_id"]
    assert set(described[0]["metadata"]) == METADATA
    assert client.post("/metadata", content='{"ids": [], "indice_name": "videos"}').json() == []


def client_class():
    """clip-retrieval's ``ClipClient``; its file alone, for the package imports all that its back end needs."""
    found = importlib.util.find_spec("clip_retrieval")
    if found is None or importlib.util.find_spec("requests") is None:
        pytest.skip("clip-retrieval (without its heavy dependencies) and requests are not installed; replayed above")
    (folder,) = found.submodule_search_locations
    spec = importlib.util.spec_from_file_location("clip_client", Path(folder) / "clip_client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipClient


def test_the_real_client(start_server, clip_store, tiny_checkpoint):
    made_by = client_class()
    server = start_server("--store", clip_store / "store", "--model", tiny_checkpoint)
    made = made_by(url=f"{server.url}/knn-service", indice_name="videos", num_images=3)
    found = made.query(text="a red circle")
    assert len(found) == 3
    assert {"id", "similarity", "url", "caption"} <= set(found[0])
    row = httpx.post(f"{server.url}/v1/embeddings", json={"texts": ["a red circle"]}).json()["embeddings"][0]
    assert len(made.query(embedding_input=row)) == 3
    assert "no URL is ever fetched" in made.query(image="https://example.com/a.jpg")["next_step"]
