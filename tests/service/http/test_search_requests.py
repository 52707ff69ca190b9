"""Requests of ``/v1/search``: content types and broken JSON, scopes, refusal while the queue is full."""

import asyncio
import json
import threading

import httpx
import pytest
from service_support import assert_problem, bearer, make_app, make_keys
from wire_support import ask_by_hand, in_app, never

from service.http.middleware import SECURITY_HEADERS
from service.search.engine import Engine

PATIENCE = 30


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b'{"text": "a red circle"}', 200),
        ("application/json; charset=utf-8", b'{"text": "a red circle"}', 200),
        ("application/json", '\ufeff{"text": "a"}'.encode("utf-16"), 422),
        ("application/json", b'{"text": "a", "k": 2.5}', 422),
        ("application/json", b'{"text": "\xff"}', 400),
        ("application/json", b"[" * 100_000, 422),
        ("application/json", b"", 422),
        ("text/plain", b'{"text": "a"}', 415),
    ],
)
def test_a_search_takes_json_and_says_what_is_wrong_with_anything_else(client, kind, body, status):
    answer = client.post("/v1/search", content=body, headers={"Content-Type": kind})
    if status == 200:
        assert answer.json()["hits"]
        plain = client.post("/v1/search", json={"text": "a red circle"}).json()["hits"]
        assert [hit["video_id"] for hit in answer.json()["hits"]] == [hit["video_id"] for hit in plain]
    else:
        assert_problem(answer, answer.status_code)
        assert 400 <= answer.status_code < 500


def test_a_search_needs_its_scope(clip_store, tiny_encoder, tmp_path):
    _, tokens = make_keys(tmp_path)
    app = make_app(clip_store, tiny_encoder, tmp_path, require_keys=True)

    async def ask(client, **headers):
        answers = []
        for kind in ("application/json", "application/json; charset=utf-8"):
            sent = {"Content-Type": kind, **headers}
            answers.append((await client.post("/v1/search", content=b'{"text": "a"}', headers=sent)).status_code)
        return answers

    async def run():
        async with served(app) as client:
            return await ask(client), await ask(client, **bearer(tokens["search"]))

    assert asyncio.run(run()) == ([401, 401], [200, 200])


def served(app):
    """A client of ``app`` while its lifespan lasts."""

    class Served:
        async def __aenter__(self):
            self._life = app.router.lifespan_context(app)
            await self._life.__aenter__()
            transport = httpx.ASGITransport(app)
            self._client = httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=PATIENCE)
            return self._client

        async def __aexit__(self, *error):
            await self._client.aclose()
            await self._life.__aexit__(*error)

    return Served()


@pytest.fixture
def held(monkeypatch):
    """Searches that are computed only once the returned event is set."""
    gate, straight = threading.Event(), Engine.search

    def wait(self, queries):
        assert gate.wait(PATIENCE)
        return straight(self, queries)

    monkeypatch.setattr(Engine, "search", wait)
    return gate


def overload(app, gate, *, wanted, **headers):
    """Ask 40 times at once while nothing is computed; the answers, and what ``wanted(services)`` says in the end."""

    async def run():
        async with served(app) as client:
            services = app.state.services
            asked = [
                asyncio.ensure_future(client.post("/v1/search", json={"text": f"number {n}"}, headers=headers))
                for n in range(40)
            ]
            while sum(one.done() for one in asked) < 40 - 4 - 2:
                await asyncio.sleep(0.002)
            gate.set()
            answers = await asyncio.gather(*asked)
            later = await client.post("/v1/search", json={"text": "later"})
            return answers, (await client.get("/metrics")).text, later, wanted(services)

    return asyncio.run(asyncio.wait_for(run(), 2 * PATIENCE))


def test_searches_are_refused_while_the_queue_is_full(clip_store, tiny_encoder, tmp_path, held):
    app = make_app(clip_store, tiny_encoder, tmp_path, max_queue=4, max_batch=2, max_texts=4)
    answers, metrics, later, rejected = overload(
        app, held, wanted=lambda services: services.searches.rejected, **{"X-Request-ID": "mine"}
    )
    statuses = sorted(answer.status_code for answer in answers)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 4
    for answer in refused:
        problem = assert_problem(answer, 503, slug="overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert (answer.headers["x-request-id"], problem["request_id"]) == ("mine", "mine")
        assert all(answer.headers[name] == value for name, value in SECURITY_HEADERS.items())
    assert later.status_code == 200  # what was refused holds no place
    assert rejected == len(refused)
    assert f'emcl_problems_total{{problem="overloaded"}} {len(refused)}.0' in metrics


def test_a_refused_request_that_sends_much_loses_its_connection(clip_store, tiny_encoder, tmp_path, held):
    app = make_app(clip_store, tiny_encoder, tmp_path, max_queue=1, max_batch=1, max_texts=1)

    async def run():
        async with served(app) as client:
            queue, asked = app.state.services.searches, []
            for ready in (lambda: queue.batches == 1, lambda: queue.queue_depth == 1):
                asked.append(asyncio.ensure_future(client.post("/v1/search", json={"text": "a"})))
                while not ready():
                    await asyncio.sleep(0.002)
            large = await ask_by_hand(app, receive=never, headers=[(b"content-length", b"1000000")])
            small = await ask_by_hand(app, receive=never, headers=[(b"content-length", b"10")])
            held.set()
            await asyncio.gather(*asked)
            return large, small

    (status, large), (other, small) = asyncio.run(asyncio.wait_for(run(), 2 * PATIENCE))
    assert (status, other) == (503, 503)
    assert large[b"connection"] == b"close"
    assert b"connection" not in small


def test_requests_that_are_still_arriving_do_not_fill_the_queue(clip_store, tiny_encoder, tmp_path):
    app = make_app(clip_store, tiny_encoder, tmp_path, max_queue=4, max_batch=2, max_texts=4)
    parts = [(b'{"text":', True), (b' "a"}', False)]

    async def whole():
        if not parts:
            await never()  # the client stays
        body, more = parts.pop(0)
        return {"type": "http.request", "body": body, "more_body": more}

    async def scenario(services):
        slow = [asyncio.ensure_future(ask_by_hand(app, receive=never)) for _ in range(10)]
        while services.admission.active < len(slow):
            await asyncio.sleep(0.002)
        status, _ = await ask_by_hand(app, receive=whole)
        for one in slow:
            one.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return status, services.searches.rejected

    assert in_app(app, scenario) == (200, 0)


def test_a_page_of_another_origin_can_read_its_refusal(clip_store, tiny_encoder, tmp_path, held):
    page = "https://page.example"
    app = make_app(clip_store, tiny_encoder, tmp_path, max_queue=4, max_batch=2, max_texts=4, cors_origins=page)
    answers, _, _, _ = overload(app, held, wanted=lambda services: None, Origin=page)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert all(answer.headers["access-control-allow-origin"] == page for answer in refused)


def test_the_model_of_the_answer_is_still_described(client):
    schema = client.get("/openapi.json").json()["paths"]["/v1/search"]["post"]
    answers = schema["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert [part["$ref"].rsplit("/", 1)[1] for part in answers] == ["SearchAnswer", "ManyAnswers"]
    assert "SearchRequest" in json.dumps(schema["requestBody"])
