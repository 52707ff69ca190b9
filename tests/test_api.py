"""The HTTP interface: shapes, errors as problem details, ranges, pictures, and what it says of itself."""

import asyncio
import json
import threading
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from indexer.store import StoreReader
from service.app import create_app
from service.deps import query_limits
from service.engine import Engine
from service.settings import load_settings

PROBLEM = "application/problem+json"


def make_app(clip_store, encoder, **options):
    settings = load_settings({"store": clip_store / "store", "allowed_hosts": "testserver", **options})
    engine = Engine(
        encoder,
        lambda: StoreReader.open(settings.store, fingerprint=encoder.fingerprint),
        limits=query_limits(settings),
        cache_entries=settings.cache_entries,
    )
    return create_app(settings, engine)


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder):
    with TestClient(make_app(clip_store, tiny_encoder, max_text_chars=100, max_texts=8)) as made:
        yield made


@pytest.fixture
def video_id(client):
    return client.get("/v1/videos").json()["videos"][0]["video_id"]


def assert_problem(response, status, *, slug=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    for field in ("type", "title", "detail", "expected", "next_step"):
        assert problem[field], field
    if slug is not None:
        assert problem["type"] == f"/docs#problem-{slug}"
    return problem


def assert_same_hits(left, right):
    assert [(hit["video_id"], hit["segment"]) for hit in left] == [(hit["video_id"], hit["segment"]) for hit in right]
    assert [hit["score"] for hit in left] == pytest.approx([hit["score"] for hit in right], abs=1e-5)


def test_search_answers_hits_with_both_scores_and_the_moment(client):
    answer = client.post("/v1/search", json={"text": "a red circle moves left", "k": 3}).json()
    assert set(answer) == {"hits", "source"}
    assert len(answer["hits"]) == 3
    for hit in answer["hits"]:
        assert set(hit) == {
            "video_id", "segment", "start", "end", "score", "stage1_score", "moment", "frame_weights", "title",
            "duration_seconds", "tags", "thumbnail_url", "stream_url",
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


def test_concurrent_queries_answer_as_each_does_alone(clip_store, tiny_encoder):
    app = make_app(clip_store, tiny_encoder, max_wait_ms=20)
    texts = [f"a {colour} {shape}" for colour in ("red", "blue", "green", "white") for shape in ("ring", "box", "star")]

    async def run():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://testserver") as client,
        ):
            together = await asyncio.gather(*(client.post("/v1/search", json={"text": text}) for text in texts))
            alone = [await client.post("/v1/search", json={"text": text}) for text in texts]
            return together, alone

    together, alone = asyncio.run(run())
    for one, other in zip(together, alone, strict=True):
        assert one.status_code == 200
        assert_same_hits(one.json()["hits"], other.json()["hits"])


def test_over_capacity_the_answer_is_503_at_once(clip_store, tiny_encoder, monkeypatch):
    app = make_app(clip_store, tiny_encoder, max_queue=8, max_texts=8, max_batch=1)
    gate, computing = threading.Event(), threading.Event()
    straight = Engine.search

    def held(self, queries):
        computing.set()
        return gate.wait(20) and straight(self, queries)

    monkeypatch.setattr(Engine, "search", held)

    async def run():
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver") as client,
        ):
            waiting = [asyncio.ensure_future(client.post("/v1/search", json={"text": "a"}))]
            while not computing.is_set():  # nine at once would fill the queue of eight before one is taken from it
                await asyncio.sleep(0.005)
            waiting += [asyncio.ensure_future(client.post("/v1/search", json={"text": "a"})) for _ in range(8)]
            while app.state.services.searches.queue_depth < 8:
                await asyncio.sleep(0.005)
            loop = asyncio.get_running_loop()
            started = loop.time()
            refused = await client.post("/v1/search", json={"text": "a"})
            seconds = loop.time() - started
            live = await client.get("/health/live")
            gate.set()
            return refused, seconds, live, await asyncio.gather(*waiting)

    refused, seconds, live, answered = asyncio.run(run())
    assert_problem(refused, 503, slug="overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert seconds < 0.5
    assert live.status_code == 200
    assert [response.status_code for response in answered] == [200] * 9


def test_a_client_that_leaves_frees_its_place_in_the_queue(clip_store, tiny_encoder, monkeypatch):
    app = make_app(clip_store, tiny_encoder, max_batch=1)
    gate, computed = threading.Event(), []
    straight = Engine.search

    def held(self, queries):
        computed.extend(query.text for query in queries)
        return gate.wait(20) and straight(self, queries)

    monkeypatch.setattr(Engine, "search", held)

    async def ask(text, left):
        """One request by hand: the body, then silence until the client leaves."""
        body = json.dumps({"text": text}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        sent = []
        headers = [(b"host", b"testserver"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/search", "query_string": b"", "headers": headers}
        await app({**scope, "http_version": "1.1", "scheme": "http", "root_path": ""}, receive, send)
        return sent[0]["status"]

    async def run():
        async with app.router.lifespan_context(app):
            searches = app.state.services.searches
            stays, leaves = asyncio.Event(), asyncio.Event()
            first = asyncio.ensure_future(ask("first", stays))
            while not computed:
                await asyncio.sleep(0.005)
            second, third = (asyncio.ensure_future(ask(*args)) for args in (("second", leaves), ("third", stays)))
            while searches.queue_depth < 2:
                await asyncio.sleep(0.005)
            leaves.set()
            await asyncio.wait_for(second, 10)
            assert searches.queue_depth == 1
            gate.set()
            return await asyncio.gather(first, third)

    assert asyncio.run(run()) == [200, 200]
    assert computed == ["first", "third"]


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


def test_the_thread_that_computes_uses_as_many_threads_as_it_may(clip_store, tiny_encoder, monkeypatch):
    import faiss
    import torch

    seen = []
    straight = Engine.search

    def watched(self, queries):
        seen.append((faiss.omp_get_max_threads(), torch.get_num_threads()))
        return straight(self, queries)

    monkeypatch.setattr(Engine, "search", watched)
    before = torch.get_num_threads()
    with TestClient(make_app(clip_store, tiny_encoder, faiss_threads=3, threads=1)) as client:
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200
    torch.set_num_threads(before)
    assert seen == [(3, 1)]


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


def test_videos_are_listed_in_pages_and_described(client, video_id):
    first = client.get("/v1/videos", params={"limit": 4}).json()
    second = client.get("/v1/videos", params={"limit": 4, "offset": 4}).json()
    assert first["total"] == 6
    ids = [video["video_id"] for video in first["videos"] + second["videos"]]
    assert ids == sorted(set(ids))
    assert len(ids) == 6
    video = client.get(f"/v1/videos/{video_id}").json()
    assert video == first["videos"][0]
    assert video["state"] == "indexed"
    assert len(video["captions"]) == 2
    assert video["segments"][0]["start"] == 0


def test_streams_serve_whole_files_and_ranges(client, clip_store, video_id):
    path = clip_store / "clips" / (client.get(f"/v1/videos/{video_id}").json()["title"] + ".mp4")
    content, url = path.read_bytes(), f"/v1/videos/{video_id}/stream"
    whole = client.get(url)
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(content)
    for header, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={size - 5}-", size - 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=5-{size + 100}", 5, size),
        (f"bytes=-{size + 100}", 0, size),
    ):
        part = client.get(url, headers={"Range": header})
        assert (part.status_code, part.content) == (206, content[start:end]), header
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    for header in (f"bytes={size}-", "bytes=-0", "bytes=9-3", "bytes=", "bytes=a-b", "lines=1-2", "bytes=0-1,9-3"):
        refused = client.get(url, headers={"Range": header})
        assert_problem(refused, 416, slug="range-not-satisfiable")
        assert refused.headers["content-range"] == f"bytes */{size}"
    head = client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    part = client.get(url, headers={"Range": "bytes=0-3", "If-Range": '"another"'})
    assert (part.status_code, part.content) == (200, content)
    part = client.get(url, headers={"Range": "bytes=0-3", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, content[:4])


def test_a_file_that_went_away_or_changed_is_gone(client, clip_store, video_id):
    path = clip_store / "clips" / (client.get(f"/v1/videos/{video_id}").json()["title"] + ".mp4")
    content = path.read_bytes()
    try:
        path.unlink()
        assert_problem(client.get(f"/v1/videos/{video_id}/stream"), 410, slug="gone")
        path.write_bytes(content + b"more")
        assert_problem(client.get(f"/v1/videos/{video_id}/stream"), 410, slug="gone")
    finally:
        path.write_bytes(content)


def test_thumbnails_are_pictures_of_their_moment(client, video_id):
    url = f"/v1/videos/{video_id}/thumbnail"
    first, last, behind, default = (
        client.get(url, params=params) for params in ({"t": 0}, {"t": 1.9}, {"t": 1e6}, None)
    )
    for picture in (first, last, behind, default):
        assert picture.status_code == 200
        assert picture.headers["content-type"] == "image/jpeg"
        assert picture.content.startswith(b"\xff\xd8")
    assert first.content != last.content
    for wrong in ("-1", "nan", "inf", "x"):
        assert_problem(client.get(url, params={"t": wrong}), 422)


@pytest.mark.parametrize("path", ["", "/stream", "/thumbnail"])
def test_unknown_and_impossible_videos(client, path):
    assert_problem(client.get(f"/v1/videos/{'0' * 64}{path}"), 404, slug="not-found")
    for wrong in ("nothing", "0" * 63, "..%2F..%2Fetc%2Fpasswd", "G" * 64):
        response = client.get(f"/v1/videos/{wrong}{path}")
        assert response.status_code in (404, 422)
        assert response.headers["content-type"] == PROBLEM


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


def test_unknown_paths_and_methods_are_problems(client):
    assert_problem(client.get("/nothing/here"), 404)
    refused = client.get("/v1/search")
    assert_problem(refused, 405)
    assert refused.headers["allow"] == "POST"


def test_a_fault_tells_an_incident_and_nothing_else(clip_store, tiny_encoder, monkeypatch, caplog):
    def fail(self, texts):
        raise RuntimeError("secret path /srv/private")

    monkeypatch.setattr(Engine, "embed", fail)
    with TestClient(make_app(clip_store, tiny_encoder)) as client:
        response = client.post("/v1/embeddings", json={"texts": ["a"]})
        problem = assert_problem(response, 500, slug="internal")
        assert "secret" not in response.text
        assert "RuntimeError" not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"
        assert problem["incident"] in caplog.text
        assert "secret path" in caplog.text
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200


def test_only_its_own_names_are_answered_for(clip_store, tiny_encoder):
    app = make_app(clip_store, tiny_encoder, allowed_hosts=None)
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
    text = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    schema = client.get("/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text, f"docs/api.md lacks {method.upper()} {path}"
    for name in ("SearchRequest", "HitOut", "CaptionOut", "VideoOut", "RerankRequest", "EmbeddingsRequest", "Problem"):
        for field in schema["components"]["schemas"][name]["properties"]:
            assert f"`{field}`" in text, f"docs/api.md lacks {name}.{field}"
