"""Over capacity, over a real socket: what is refused and how, what silent clients cost, what is never computed."""

import asyncio
import json
import socket
import threading
import time

import httpx
import psutil
import pytest
from redis_support import PASSWORD
from service_support import bearer, make_app, make_keys
from wire_support import read_all

from service.http.protocol import allow_open_files
from service.search.engine import Engine

MEBIBYTE = 1024**2
PATIENCE = 30


@pytest.fixture(scope="module")
def serve(start_server, clip_store, tiny_checkpoint, tmp_path_factory):
    """Start a server with options."""

    def start(*options):
        jobs = tmp_path_factory.mktemp("jobs")
        store = ("--store", clip_store / "store", "--model", tiny_checkpoint)
        return start_server(*store, "--jobs-folder", jobs, "--embedded-worker", "off", *options)

    return start


@pytest.fixture(scope="module")
def small_server(serve):
    """One that takes few connections and waits for nobody."""
    return serve("--max-connections", "6", "--request-timeout-seconds", "1")


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def parse(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return status, headers, json.loads(body)


def test_a_connection_over_the_limit_is_told_when_to_return(small_server):
    silent = [connect(small_server) for _ in range(6)]
    try:
        started = time.monotonic()
        with connect(small_server) as refused:
            status, headers, problem = parse(read_all(refused))
        assert time.monotonic() - started < 10
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert headers["content-type"] == "application/problem+json"
        assert problem["next_step"]
    finally:
        for connection in silent:
            connection.close()
    until(lambda: status_of(small_server) == 200)


def status_of(server):
    try:
        return httpx.get(server.url + "/health/live", timeout=PATIENCE).status_code
    except httpx.TransportError:
        return None


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


HEAD = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("start", [b"", b"GET /hea", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_a_client_that_says_nothing_or_little_is_let_go(small_server, start):
    with connect(small_server) as connection:
        connection.sendall(start)
        assert read_all(connection) == b""


def test_a_later_request_of_a_connection_must_come_whole_too(small_server):
    with connect(small_server) as connection:
        connection.sendall(HEAD)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health")
        rest = read_all(connection)
        assert b"HTTP/1.1" not in rest


def test_a_body_that_does_not_come_is_408(small_server):
    with connect(small_server) as connection:
        connection.sendall(
            b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"text"'
        )
        status, headers, problem = parse(read_all(connection))
    assert (status, headers["connection"]) == (408, "close")
    assert problem["type"] == "/docs#problem-request-timeout"


NONSENSE = [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n"]


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_what_is_no_http_is_told_so(small_server, nonsense):
    with connect(small_server) as connection:
        connection.sendall(nonsense)
        status, headers, problem = parse(read_all(connection))
    assert (status, headers["connection"]) == (400, "close")
    assert problem["next_step"]


@pytest.mark.slow
def test_many_silent_connections_cost_little_memory_and_nobody_waits_for_them(serve):
    server = serve("--max-connections", "120", "--request-timeout-seconds", "60")
    process = psutil.Process(server.process.pid)
    assert status_of(server) == 200
    before = process.memory_info().rss
    silent = []
    try:
        for number in range(110):
            silent.append(connect(server))
            silent[-1].sendall(b"POST /v1/search HTTP/1.1\r\nX: " + b"x" * 1000 if number % 2 else b"")
        assert status_of(server) == 200
        assert httpx.post(server.url + "/v1/search", json={"text": "a"}, timeout=PATIENCE).status_code == 200
        refused = 0
        for _ in range(25):
            silent.append(connect(server))
        for _ in range(5):
            refused += status_of(server) != 200
        assert refused > 0
        assert process.memory_info().rss - before < 64 * MEBIBYTE
    finally:
        for connection in silent:
            connection.close()
    until(lambda: status_of(server) == 200)


@pytest.mark.slow
def test_a_crowd_is_answered_or_told_when_to_return(serve):
    server = serve("--max-requests", "8", "--max-queue", "64", "--result-cache-bytes", "0")
    process = psutil.Process(server.process.pid)

    async def crowd():
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=PATIENCE) as client:
            asked = (client.post("/v1/search", json={"text": f"number {number}"}) for number in range(60))
            return await asyncio.gather(*asked)

    asyncio.run(crowd())  # once, so that what is kept on purpose is there
    before = process.memory_info().rss
    answers = asyncio.run(crowd())
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 503)
    assert all(answer.json()["next_step"] for answer in answers if answer.status_code == 503)
    assert sum(answer.status_code == 200 for answer in answers) > 0
    assert process.memory_info().rss - before < 64 * MEBIBYTE
    assert httpx.get(server.url + "/health/ready", timeout=PATIENCE).status_code == 200


def test_a_query_whose_time_is_over_is_told_and_never_computed(clip_store, tiny_encoder, tmp_path, monkeypatch):
    gate, computed = threading.Event(), []
    straight = Engine.search

    def held(self, queries):
        computed.extend(query.text for query in queries)
        assert gate.wait(PATIENCE)
        return straight(self, queries)

    monkeypatch.setattr(Engine, "search", held)
    app = make_app(clip_store, tiny_encoder, tmp_path, max_batch=1, query_timeout_ms=300)

    async def run():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=PATIENCE) as client,
        ):
            first = asyncio.ensure_future(client.post("/v1/search", json={"text": "first"}))
            while not computed:
                await asyncio.sleep(0.005)
            late = await client.post("/v1/search", json={"text": "late"})
            probe = await client.get("/health/ready")  # the thread is busy: not ready within the bound, and said so
            gate.set()
            return late, probe, await first, app.state.services.searches.expired

    late, probe, first, expired = asyncio.run(run())
    assert (late.status_code, probe.status_code, first.status_code) == (503, 503, 200)
    assert "was not computed" in late.json()["detail"]
    assert int(late.headers["retry-after"]) >= 1
    assert computed == ["first"]
    assert expired == 1


def test_as_many_files_may_be_open_as_connections_need():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        allow_open_files(700)
        wanted = 700 + 256
        expected = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == expected
        allow_open_files(10)  # never lowered
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == expected
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_server_with_debug_logs_tells_no_secret(serve, tmp_path, redis_server, monkeypatch, log_format):
    monkeypatch.setenv("EMCL_REDIS_URL", redis_server.url)
    key_store, tokens = make_keys(tmp_path)
    options = ("--require-keys", "--keys-file", tmp_path / "keys.json", "--log-level", "debug")
    server = serve(*options, "--log-format", log_format)
    wrong = "emcl_0123456789ab_" + "5" * 64
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        assert client.get("/v1/index").status_code == 401
        for token, status in ((tokens["search"], 200), (wrong, 401)):
            assert client.post("/v1/search", json={"text": "a"}, headers=bearer(token)).status_code == status
            assert client.get("/v1/videos", headers={"X-API-Key": token}).status_code == status
            assert client.get("/v1/videos", params={"key": token}).status_code == 401
        assert client.post("/v1/session", headers=bearer(tokens["search"])).status_code == 200
        cookie = client.cookies["emcl_session"]
        assert client.get("/v1/index").status_code == 200
    server.stop()
    said = "".join(server.said)
    assert "/v1/search" in said
    for secret in (*tokens.values(), wrong, "5" * 64, cookie, PASSWORD, key_store.session_secret.hex()):
        assert secret not in said
    assert not any(token.rsplit("_", 1)[1] in said for token in tokens.values())
