"""Who is let in: keys in headers, scopes of routes, open paths, and that a forgotten route is closed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import stat

import pytest
from fastapi.testclient import TestClient
from service_support import bearer, emcl_command, make_app, make_keys, serving

from service.access import keys as keys_module
from service.access.gate import OPEN_FOLDERS, OPEN_PATHS, is_open
from service.access.keys import SCOPES, KeyStore, includes
from service.settings import load_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("auth")


@pytest.fixture(scope="module")
def tokens(folder):
    return make_keys(folder)[1]


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder, folder, tokens):
    with serving(clip_store, tiny_encoder, folder, require_keys=True, rate_limit=0) as made:
        yield made


def problem_of(response, status, slug):
    assert response.status_code == status, response.text
    problem = response.json()
    assert problem["type"] == f"/docs#problem-{slug}"
    assert problem["next_step"]
    return problem


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/search", "search"),
        ("POST", "/v1/search/video", "search"),
        ("POST", "/v1/rerank", "search"),
        ("POST", "/v1/embeddings", "search"),
        ("POST", "/v1/search/export", "search"),
        ("POST", "/v1/search/image", "search"),
        ("POST", "/v1/classify", "search"),
        ("POST", "/v1/classify/video", "search"),
        ("POST", "/v1/caption", "search"),
        ("POST", "/v1/caption/video", "search"),
        ("POST", "/v1/answer", "search"),
        ("POST", "/v1/answer/video", "search"),
        ("GET", "/v1/videos", "search"),
        ("GET", "/v1/videos/" + "0" * 64, "search"),
        ("GET", "/v1/videos/" + "0" * 64 + "/stream", "search"),
        ("GET", "/v1/videos/" + "0" * 64 + "/thumbnail", "search"),
        ("GET", "/v1/videos/" + "0" * 64 + "/transcript", "search"),
        ("PUT", "/v1/videos/" + "0" * 64 + "/transcript", "write"),
        ("DELETE", "/v1/videos/" + "0" * 64 + "/transcript", "write"),
        ("GET", "/v1/index", "search"),
        ("POST", "/v1/session", "search"),
        ("POST", "/v1/index/reload", "admin"),
    ],
)
def test_routes_take_keys_of_their_scope_and_no_others(client, tokens, method, path, scope):
    refused = client.request(method, path)
    problem_of(refused, 401, "unauthorised")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    order = ["search", "write", "admin"]
    for held in order:
        response = client.request(method, path, headers=bearer(tokens[held]))
        client.cookies.clear()
        if order.index(held) < order.index(scope):
            problem = problem_of(response, 403, "forbidden")
            assert scope in problem["expected"]
            assert f"--scope {scope}" in problem["next_step"]
        else:
            assert response.status_code not in (401, 403), response.text


def test_every_operation_is_open_on_purpose_or_says_that_it_needs_a_key(client):
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            open_on_purpose = is_open(path) and (path, method) != ("/v1/session", "post")
            assert operation.get("security") == (None if open_on_purpose else [{"key": []}]), f"{method} {path}"


READS = {"/v1/search", "/v1/search/video", "/v1/rerank", "/v1/embeddings", "/knn-service", "/metadata", "/v1/session"}
READS |= {
    "/v1/search/export",
    "/v1/search/image",
    "/v1/classify",
    "/v1/classify/video",
    "/v1/caption",
    "/v1/caption/video",
    "/v1/answer",
    "/v1/answer/video",
}


def test_a_key_that_may_search_changes_nothing(client, tokens):
    refused = 0
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method in set(operations) - {"get", "head"}:
            if path not in READS:
                filled = re.sub(r"\{[^}]+\}", "0" * 64, path)
                response = client.request(method, filled, headers=bearer(tokens["search"]))
                problem_of(response, 403, "forbidden")
                refused += 1
    assert refused >= 1


def test_a_route_without_a_scope_is_closed_all_the_same(clip_store, tiny_encoder, folder, tokens):
    app = make_app(clip_store, tiny_encoder, folder, require_keys=True)

    @app.get("/forgotten")
    def forgotten() -> str:
        return "secret"

    with TestClient(app) as client:
        problem_of(client.get("/forgotten"), 401, "unauthorised")
        problem_of(client.get("/no/such/path"), 401, "unauthorised")  # what there is, is not for everybody to know
        assert client.get("/forgotten", headers=bearer(tokens["search"])).json() == "secret"


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/web/app.js", "/health/live", "/health/ready"])
def test_pages_and_health_are_open_whatever_key_is_shown(client, path):
    assert is_open(path)
    assert client.get(path).status_code == 200
    assert client.get(path, headers=bearer("emcl_nonsense")).status_code == 200


@pytest.mark.parametrize("path", ["/webx", "/health", "/docs/x", "/v1/session/x", "/web", "/WEB/app.js", "/v1"])
def test_paths_that_only_look_open_are_not(client, path):
    assert not is_open(path)
    assert client.get(path, follow_redirects=False).status_code == 401


def test_open_is_a_short_list():
    assert {"/", "/docs", "/openapi.json", "/v1/session"} == OPEN_PATHS
    assert OPEN_FOLDERS == ("/web/", "/health/")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer emcl_000000000000_" + "0" * 64},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic YTpi"},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"Authorization": "Bearer " + "x" * 10_000},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
def test_wrong_keys_are_refused(client, headers):
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    problem_of(client.get("/v1/index", headers=raw), 401, "unauthorised")


def test_a_key_may_come_in_either_header_and_any_case(client, tokens):
    assert client.get("/v1/index", headers={"X-API-Key": tokens["search"]}).status_code == 200
    assert client.get("/v1/index", headers={"authorization": f"bEARER {tokens['search']}"}).status_code == 200


def test_a_key_in_the_address_is_no_key(client, tokens):
    assert client.get("/v1/index", params={"key": tokens["admin"], "api_key": tokens["admin"]}).status_code == 401


def test_an_unknown_key_is_refused_before_its_body_is_read(client):
    huge = (b"x" * 65536 for _ in range(1 << 20))  # 64 GiB, were it read
    response = client.post("/v1/search", content=huge, headers=bearer("emcl_wrong"))
    problem_of(response, 401, "unauthorised")


def test_new_and_revoked_keys_count_without_a_restart(client, folder):
    key_store = KeyStore(folder / "keys.json")
    token = key_store.create("temporary", "search")[1]
    assert client.get("/v1/index", headers=bearer(token)).status_code == 200
    key_store.revoke("temporary")
    problem_of(client.get("/v1/index", headers=bearer(token)), 401, "unauthorised")


def test_on_loopback_no_key_is_needed_and_a_shown_one_does_no_harm(clip_store, tiny_encoder, tmp_path):
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        assert client.get("/v1/index").status_code == 200
        assert client.get("/v1/index", headers=bearer("emcl_wrong")).status_code == 200
        assert client.post("/v1/index/reload").status_code == 200


def test_a_public_address_needs_a_key(clip_store, tiny_encoder, tmp_path):
    app = make_app(clip_store, tiny_encoder, tmp_path, host="0.0.0.0")
    with pytest.raises(ValueError, match="emcl keys create"), TestClient(app):
        pass
    key_store, tokens = make_keys(tmp_path)
    with serving(clip_store, tiny_encoder, tmp_path, host="0.0.0.0") as client:
        assert client.get("/v1/index").status_code == 401
        assert client.get("/v1/index", headers=bearer(tokens["search"])).status_code == 200
    for key in key_store.all_keys():
        key_store.revoke(key.key_id)
    with pytest.raises(ValueError, match="no valid key"), serving(clip_store, tiny_encoder, tmp_path, host="0.0.0.0"):
        pass


def test_keys_cannot_be_off_on_a_public_address():
    with pytest.raises(ValueError, match="keys cannot be off"):
        load_settings({"host": "192.168.1.5", "require_keys": False})
    assert load_settings({"host": "192.168.1.5"}).keys_required
    assert load_settings({"host": "192.168.1.5", "require_keys": True}).keys_required
    assert load_settings({"require_keys": True}).keys_required
    assert not load_settings({}).keys_required


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys" / "keys.json"


@pytest.fixture
def run(monkeypatch, capsys, path):
    """Run ``emcl keys …`` on the file; returns exit code, output and errors."""
    made = emcl_command(monkeypatch, capsys, "keys")
    monkeypatch.setenv("EMCL_KEYS_FILE", str(path))
    return made


def test_a_key_is_shown_once_and_kept_hashed(run, path):
    code, out, err = run("create", "--name", "page", "--scope", "write", "--expires", "30")
    assert code == 0, err
    token = out.strip()
    assert re.fullmatch(r"emcl_[0-9a-f]{12}_[0-9a-f]{64}", token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_text()
    assert token not in content
    assert token.rsplit("_", 1)[1] not in content
    assert KeyStore(path).check(token).scope == "write"
    code, out, _ = run("list")
    assert token.split("_")[1] in out
    assert "page" in out
    assert json.loads(content)["keys"][0]["digest"] not in out
    entry = json.loads(run("list", "--json")[1])[0]
    assert (entry["name"], entry["scope"], entry["state"]) == ("page", "write", "valid")
    assert entry["expires"] > entry["created"]


def test_a_revoked_key_is_listed_and_worth_nothing(run, path):
    token = run("create", "--name", "page", "--scope", "search")[1].strip()
    assert run("create", "--name", "page", "--scope", "search")[0] == 1  # the name is taken
    code, out, _ = run("revoke", "page")
    assert (code, "is revoked" in out) == (0, True)
    assert KeyStore(path).check(token) is None
    assert "revoked" in run("list")[1]
    code, _, err = run("revoke", "page")
    assert code == 1
    assert "emcl keys list" in err
    assert run("create", "--name", "page", "--scope", "search")[0] == 0
    assert run("revoke", token.split("_")[1])[0] == 1  # the old one of the same name


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "--name", "a/b", "--scope", "search"),
        ("create", "--name", "", "--scope", "search"),
        ("create", "--name", "x" * 65, "--scope", "search"),
        ("create", "--name", "a\nb", "--scope", "search"),
        ("create", "--name", "a", "--scope", "search", "--expires", "0"),
        ("create", "--name", "a", "--scope", "search", "--expires", "nan"),
        ("revoke", "nobody"),
    ],
)
def test_wrong_arguments_are_one_line(run, path, arguments):
    code, _, err = run(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    assert not path.exists() or json.loads(path.read_text())["keys"] == []


def test_a_wrong_scope_is_wrong_usage(run):
    assert run("create", "--name", "a", "--scope", "everything")[0] == 2


def test_no_keys_says_how_to_make_one(run):
    assert "emcl keys create" in run("list")[1]


def test_only_whole_valid_tokens_are_keys(path):
    key_store = KeyStore(path)
    key, token = key_store.create("a", "search")
    assert key_store.check(token).key_id == key.key_id
    last = "0" if token[-1] != "0" else "1"
    other = key_store.create("b", "search")[1]
    swapped = token[:18] + other[18:]
    for wrong in (token[:-1] + last, token[:-1], token + "0", token.upper(), "", "emcl_", swapped, " " + token):
        assert key_store.check(wrong) is None, wrong


def test_every_check_compares_one_hash_in_constant_time(path, monkeypatch):
    key_store = KeyStore(path)
    tokens = [key_store.create(f"key {number}", "search")[1] for number in range(5)]
    compared = []
    straight = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or straight(a, b))
    assert key_store.check(tokens[3]) is not None
    assert key_store.check(tokens[3][:-4] + "0000") is None
    assert key_store.check("emcl_" + "0" * 12 + "_" + "0" * 64) is None  # unknown: compared all the same
    assert len(compared) == 3
    assert all(len(a) == len(b) == 64 for a, b in compared)


def test_a_key_expires(path, monkeypatch):
    key_store = KeyStore(path)
    token = key_store.create("a", "search", expires_days=1)[1]
    now = keys_module.time.time()
    assert key_store.check(token) is not None
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 86_399)
    assert key_store.check(token) is not None
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 86_401)
    assert key_store.check(token) is None
    assert not key_store.has_valid()
    assert [key.state(keys_module.time.time()) for key in key_store.all_keys()] == ["expired"]


def test_scopes_include_lower_ones():
    table = [[includes(held, wanted) for wanted in SCOPES] for held in SCOPES]
    assert SCOPES == ("search", "write", "admin")
    assert table == [[True, False, False], [True, True, False], [True, True, True]]


def test_another_process_change_is_noticed_and_an_unchanged_file_is_not_read_again(path, monkeypatch):
    reader, writer = KeyStore(path), KeyStore(path)
    assert not reader.has_valid()
    token = writer.create("a", "search")[1]
    reads = []
    straight = keys_module.read_keys
    monkeypatch.setattr(keys_module, "read_keys", lambda file: reads.append(file) or straight(file))
    assert all(reader.check(token) for _ in range(50))
    assert len(reads) == 1
    KeyStore(path).revoke("a")
    reads.clear()
    assert reader.check(token) is None
    assert len(reads) == 1
    path.unlink()
    assert reader.check(token) is None


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format": 9}', b"\xff\xfe", b'{"format": 1, "session_secret": "", "keys": [{}]}']
)
def test_a_damaged_file_is_told_and_lets_nobody_in(path, content):
    key_store = KeyStore(path)
    token = key_store.create("a", "search")[1]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a keys file"):
        key_store.check(token)
    with pytest.raises(ValueError, match="is not a keys file"):
        KeyStore(path).create("b", "search")
    assert path.read_bytes() == content


def test_a_file_that_others_can_read_is_told(path, caplog):
    key_store = KeyStore(path)
    token = key_store.create("a", "search")[1]
    path.chmod(0o644)
    os.utime(path, ns=(1, 1))
    assert key_store.check(token) is not None
    assert "chmod 600" in caplog.text


def _create_some(path, start):
    key_store = KeyStore(path)
    for number in range(5):
        key_store.create(f"key-{start}-{number}", "search")


def test_several_processes_lose_no_key(path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_create_some, args=(path, start)) for start in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(KeyStore(path).all_keys()) == 15
