"""Searches at the same time: answered as each alone, refused over capacity, forgotten when their client leaves."""

import asyncio
import json
import threading

import httpx
from fastapi.testclient import TestClient
from service_support import assert_problem, assert_same_hits, make_app

from service.search.engine import Engine


def test_concurrent_queries_answer_as_each_does_alone(clip_store, tiny_encoder, tmp_path):
    app = make_app(clip_store, tiny_encoder, tmp_path, max_wait_ms=20)
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


def test_over_capacity_the_answer_is_503_at_once(clip_store, tiny_encoder, tmp_path, monkeypatch):
    app = make_app(clip_store, tiny_encoder, tmp_path, max_queue=8, max_texts=8, max_batch=1)
    gate, computing = threading.Event(), threading.Event()
    straight = Engine.search

    def held(self, queries):
        computing.set()
        assert gate.wait(120)
        return straight(self, queries)

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
            refused = await client.post("/v1/search", json={"text": "a"})
            live = await client.get("/health/live")
            waited_for = [request for request in waiting if request.done()]
            gate.set()
            return refused, waited_for, live, await asyncio.gather(*waiting)

    refused, waited_for, live, answered = asyncio.run(run())
    assert_problem(refused, 503, slug="overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert waited_for == []  # it was refused while all of them still waited
    assert live.status_code == 200
    assert [response.status_code for response in answered] == [200] * 9


def test_a_client_that_leaves_frees_its_place_in_the_queue(clip_store, tiny_encoder, tmp_path, monkeypatch):
    app = make_app(clip_store, tiny_encoder, tmp_path, max_batch=1)
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


def test_the_thread_that_computes_uses_as_many_threads_as_it_may(clip_store, tiny_encoder, tmp_path, monkeypatch):
    import faiss
    import torch

    seen = []
    straight = Engine.search

    def watched(self, queries):
        seen.append((faiss.omp_get_max_threads(), torch.get_num_threads()))
        return straight(self, queries)

    monkeypatch.setattr(Engine, "search", watched)
    before = torch.get_num_threads()
    with TestClient(make_app(clip_store, tiny_encoder, tmp_path, faiss_threads=3, threads=1)) as client:
        assert client.post("/v1/search", json={"text": "a"}).status_code == 200
    torch.set_num_threads(before)
    assert seen == [(3, 1)]
