"""What the service says of itself: index, health, pages, headers, faults, its schema and documentation."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from service_support import PROBLEM, assert_problem, make_app

from service.search.engine import Engine


def test_unknown_paths_and_methods_are_problems(client):
    assert_problem(client.get("/nothing/here"), 404)
    refused = client.get("/v1/search")
    assert_problem(refused, 405)
    assert refused.headers["allow"] == "POST"


def test_a_fault_tells_an_incident_and_nothing_else(clip_store, tiny_encoder, tmp_path, monkeypatch, caplog):
    def fail(self, texts):
        raise RuntimeError("secret path /srv/private")

    monkeypatch.setattr(Engine, "embed", fail)
    with TestClient(make_app(clip_store, tiny_encoder, tmp_path)) as client:
        response = client.post("/v1/embeddings", json={"texts": ["a"]})
        problem = assert_problem(response, 500, slug="internal")
        assert "secret" not in response.text
        assert "RuntimeError" not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"
        assert problem["incident"] in caplog.text
        assert "secret path" in caplog.text
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200


def test_only_its_own_names_are_answered_for(clip_store, tiny_encoder, tmp_path):
    app = make_app(clip_store, tiny_encoder, tmp_path, allowed_hosts=None)
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert client.get("/health/live").status_code == 200
        for host in ("localhost:8000", "LOCALHOST", "[::1]:8000", "[::1]"):
            assert client.get("/health/live", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example", ""):
            assert_problem(client.get("/v1/videos", headers={"Host": host}), 421, slug="misdirected")


def test_the_index_is_described_and_reloaded(client):
    index = client.get("/v1/index").json()
    assert index["counts"] == {"videos": 6, "segments": 6, "captions": 12, "failed": 0}
    assert index["upload_limits"]["max_bytes"] == 100 * 1024**2
    assert client.post("/v1/index/reload").json() == index


def test_a_reload_that_fails_leaves_the_service_as_it_was(client, clip_store):
    current = clip_store / "store" / "CURRENT"
    name = current.read_text()
    try:
        current.write_text("000099-missing\n")
        assert_problem(client.post("/v1/index/reload"), 409, slug="conflict")
    finally:
        current.write_text(name)
    assert client.post("/v1/search", json={"text": "a"}).status_code == 200


def test_health_means_that_a_query_went_through(client):
    assert client.get("/health/live").json() == {"live": True}
    ready = client.get("/health/ready").json()
    assert ready["ready"] is True
    assert ready["hits"] == 1
    assert {"encode", "candidates", "rerank"} <= set(ready["source"]["stage_ms"])


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_have_no_inline_script_and_load_nothing_from_elsewhere(client, path):
    page = client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in page.text.replace("http-equiv", "")
    assert "<script>" not in page.text
    assert " style=" not in page.text
    assert " on" + "click=" not in page.text
    assert client.get("/web/style.css").status_code == 200


def test_every_answer_has_the_security_headers(client, video_id):
    for response in (client.get("/"), client.get("/nothing"), client.get(f"/v1/videos/{video_id}/stream")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in response.headers


def test_the_schema_describes_every_route_and_every_problem(client):
    schema = client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            assert route["summary"], path
            assert route["description"], path
            assert PROBLEM in route["responses"]["4XX"]["content"], (path, method)
    assert schema["components"]["schemas"]["Problem"]
    slugs = {kind["slug"] for kind in schema["x-problems"]}
    assert {"not-found", "too-large", "overloaded", "internal", "method-not-allowed"} <= slugs


def test_the_documentation_names_every_route_and_field(client):
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    schema = client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text, f"docs/api.md lacks {method.upper()} {path}"
    for name in ("SearchRequest", "HitOut", "CaptionOut", "VideoOut", "RerankRequest", "EmbeddingsRequest", "Problem"):
        for field in schema["components"]["schemas"][name]["properties"]:
            assert f"`{field}`" in text, f"docs/api.md lacks {name}.{field}"
