"""What every request passes: other origins, limits of requests and bodies, slow bodies, and what is never logged."""

import asyncio
import logging

import pytest
from fastapi.testclient import TestClient
from redis_support import PASSWORD
from service_support import bearer, make_app, make_keys, serving
from wire_support import ask_by_hand, in_app, never

from service.access.sessions import COOKIE
from service.errors import Overloaded
from service.http.middleware import Admission
from service.settings import load_settings

PAGE = "https://page.example"


def problem_of(response, status, slug):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"/docs#problem-{slug}"
    assert all(problem[field] for field in ("detail", "expected", "next_step"))
    return problem


# Other origins.


def preflight(client, origin, **changes):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization", **changes}
    return client.options("/v1/search", headers={"Origin": origin, **asked})


def test_other_origins_get_nothing_by_default(clip_store, tiny_encoder, tmp_path):
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        for response in (client.get("/v1/index", headers={"Origin": PAGE}), preflight(client, PAGE)):
            assert not [name for name in response.headers if name.startswith("access-control")]


def test_named_origins_may_use_the_api_with_a_key_and_without_cookies(clip_store, tiny_encoder, tmp_path):
    tokens = make_keys(tmp_path)[1]
    with serving(clip_store, tiny_encoder, tmp_path, require_keys=True, cors_origins=PAGE) as client:
        allowed = preflight(client, PAGE)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in allowed.headers
        assert "x-requested-with" not in allowed.headers["access-control-allow-headers"].lower()
        answer = client.get("/v1/index", headers={"Origin": PAGE, **bearer(tokens["search"])})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "access-control-allow-credentials" not in answer.headers
        refused = client.get("/v1/index", headers={"Origin": PAGE})
        assert refused.headers["access-control-allow-origin"] == PAGE  # so that the page can read why
        problem_of(refused, 401, "unauthorised")
        other = client.get("/v1/index", headers={"Origin": "https://other.example", **bearer(tokens["search"])})
        assert "access-control-allow-origin" not in other.headers
        problem_of(preflight(client, "https://other.example"), 400, "bad-request")
        problem_of(
            preflight(client, PAGE, **{"Access-Control-Request-Headers": "x-requested-with"}), 400, "bad-request"
        )


@pytest.mark.parametrize("origin", ["*", "page.example", "https://page.example/", "https://*.example", "null"])
def test_an_origin_is_named_in_full(origin):
    with pytest.raises(ValueError, match="--cors-origins"):
        load_settings({"cors_origins": origin})


# Limits.


def test_requests_over_the_limit_are_refused_unread_and_probes_are_not(clip_store, tiny_encoder, tmp_path):
    app = make_app(clip_store, tiny_encoder, tmp_path, max_requests=5)
    read = []

    async def unread():
        read.append(1)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def bodyless():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def scenario(services):
        waiting = [asyncio.ensure_future(ask_by_hand(app, receive=never)) for _ in range(5)]
        while services.admission.active < 5:
            await asyncio.sleep(0.002)
        for _ in range(200):
            status, headers = await ask_by_hand(app, receive=unread, headers=[(b"transfer-encoding", b"chunked")])
            assert status == 503
            assert int(headers[b"retry-after"]) >= 1
            assert headers[b"connection"] == b"close"
        assert read == []
        assert services.admission.rejected == 200
        for path in ("/health/live", "/v1/index", "/metrics"):
            assert (await ask_by_hand(app, path=path, method="GET", receive=bodyless))[0] == 200, path
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (services.admission.active, services.admission.held_bytes) == (0, 0)

    in_app(app, scenario)


def test_bodies_held_at_once_are_bounded():
    admission = Admission(max_requests=10, max_body_bytes=10)
    with admission.body() as one, admission.body() as other:
        one.grow(600)
        with pytest.raises(Overloaded) as refusal:
            other.grow(41)
        assert refusal.value.headers["Retry-After"]
        other.grow(40)
        assert admission.held_bytes == 640
    assert (admission.held_bytes, admission.rejected) == (0, 1)


def test_a_body_that_stalls_is_refused_and_its_memory_is_free(clip_store, tiny_encoder, tmp_path):
    app = make_app(clip_store, tiny_encoder, tmp_path, request_timeout_seconds=0.1)
    pieces = [{"type": "http.request", "body": b"x" * 1000, "more_body": True}]

    async def stalls():
        return pieces.pop() if pieces else await never()

    async def scenario(services):
        status, headers = await ask_by_hand(app, receive=stalls, headers=[(b"content-length", b"100000")])
        assert (status, headers[b"connection"]) == (408, b"close")
        assert (services.admission.active, services.admission.held_bytes) == (0, 0)

    in_app(app, scenario)


def test_a_client_that_leaves_while_its_upload_is_decoded_ends_the_decoding(
    clip_store, tiny_encoder, tmp_path, monkeypatch
):
    import psutil

    from service.media import fork_server

    sleeping = "import time; from service.media.fork_server import serve; serve({'decode': lambda _: time.sleep(600)})"
    monkeypatch.setattr(fork_server, "SERVER", ("-c", sleeping))
    app = make_app(clip_store, tiny_encoder, tmp_path)
    form = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n'

    async def scenario(services):
        def decoders():
            server = services.fork_server.pid
            return [] if server is None else psutil.Process(server).children()

        left = asyncio.Event()
        messages = [{"type": "http.request", "body": form, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        kind = b"multipart/form-data; boundary=x"
        asking = asyncio.ensure_future(ask_by_hand(app, path="/v1/search/video", receive=receive, kind=kind))
        while not decoders():
            await asyncio.sleep(0.01)
        left.set()
        await asking
        while decoders():
            await asyncio.sleep(0.01)
        while services.sandbox.outcomes["unprocessable"] + services.sandbox.outcomes["failed"] == 0:
            await asyncio.sleep(0.01)  # the thread is free again

    in_app(app, scenario)


# Secrets.


def test_no_secret_is_ever_logged(clip_store, tiny_encoder, tmp_path, redis_server, caplog):
    caplog.set_level(logging.DEBUG)
    key_store, tokens = make_keys(tmp_path)
    secret_text = "what a person is looking for"
    options = {"require_keys": True, "redis_url": redis_server.url, "log_level": "debug"}
    with TestClient(make_app(clip_store, tiny_encoder, tmp_path, **options)) as client:
        for token in (*tokens.values(), "emcl_0123456789ab_" + "5" * 64):
            client.post("/v1/search", json={"text": secret_text}, headers=bearer(token))
            client.get("/v1/videos", headers={"X-API-Key": token})
            client.get(f"/v1/videos?api_key={token}")
            client.post("/v1/session", headers=bearer(token))
        cookie = client.cookies[COOKIE]
        client.get("/v1/index")
        client.get("/no/such/path")
        with redis_server.held():
            for number in range(5):
                client.post("/v1/search", json={"text": f"{secret_text} {number}"}, headers=bearer(tokens["search"]))
        client.delete("/v1/session", headers={"X-Requested-With": "fetch"})
    logged = "\n".join(line for line in caplog.text.splitlines() if " httpx" not in line)  # the test's own client
    assert "searcher" in logged  # names of keys are logged, keys are not
    for secret in (*tokens.values(), *(token.rsplit("_", 1)[1] for token in tokens.values()), "5" * 64):
        assert secret not in logged
    for secret in (cookie, cookie.rsplit(".", 1)[1], PASSWORD, key_store.session_secret.hex(), secret_text):
        assert secret not in logged
    for key in key_store.all_keys():
        assert key.digest not in logged
