"""Sessions of a browser: the cookie, what it may do, and from where."""

import time

import pytest
from service_support import bearer, make_keys, serving

from service.access import sessions as session_module
from service.access.sessions import COOKIE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def keys(folder):
    return make_keys(folder)


@pytest.fixture(scope="module")
def running(clip_store, tiny_encoder, folder, keys):
    with serving(clip_store, tiny_encoder, folder, require_keys=True, rate_limit=0, session_seconds=100) as client:
        yield client


@pytest.fixture
def client(running):
    running.cookies.clear()
    return running


def sign_in(client, keys, scope="search"):
    response = client.post("/v1/session", headers=bearer(keys[1][scope]))
    assert response.status_code == 200, response.text
    return response


def test_a_key_becomes_a_cookie_that_loads_pictures_and_videos(client, keys):
    response = sign_in(client, keys)
    assert response.json() == {
        "keys_required": True, "signed_in": True, "name": "searcher", "scope": "search", "expires_in_seconds": 100,
    }  # fmt: skip
    cookie = response.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie  # plain HTTP
    assert keys[1]["search"] not in cookie
    assert keys[1]["search"].rsplit("_", 1)[1] not in cookie
    video_id = client.get("/v1/videos").json()["videos"][0]["video_id"]
    assert client.get(f"/v1/videos/{video_id}/thumbnail").headers["content-type"] == "image/jpeg"
    assert client.get(f"/v1/videos/{video_id}/stream", headers={"Range": "bytes=0-9"}).status_code == 206
    described = client.get("/v1/session").json()
    assert (described["signed_in"], described["name"], described["scope"]) == (True, "searcher", "search")


def test_over_https_the_cookie_is_secure(clip_store, tiny_encoder, folder, keys):
    with serving(clip_store, tiny_encoder, folder, require_keys=True) as client:
        client.base_url = "https://testserver"
        assert "Secure" in sign_in(client, keys).headers["set-cookie"]


def test_signing_out_removes_the_cookie(client, keys):
    sign_in(client, keys)
    response = client.delete("/v1/session", headers={"X-Requested-With": "fetch"})
    assert response.status_code == 204
    assert client.get("/v1/index").status_code == 401
    assert client.get("/v1/session").json()["signed_in"] is False
    assert client.delete("/v1/session").status_code == 204


def test_signing_in_takes_a_valid_key_itself(client, keys):
    assert client.post("/v1/session").status_code == 401
    assert client.post("/v1/session", headers=bearer("emcl_wrong")).status_code == 401
    assert client.get("/v1/session", headers=bearer("emcl_wrong")).status_code == 401
    sign_in(client, keys)
    prolonged = client.post("/v1/session", headers={"X-Requested-With": "fetch"})
    assert prolonged.status_code == 401
    assert "set-cookie" not in prolonged.headers


def test_a_cookie_is_worth_nothing_when_changed_or_old(client, keys, monkeypatch):
    sign_in(client, keys)
    value = client.cookies[COOKIE]
    key_id, expires, signature = value.split(".")
    for wrong in (
        f"{key_id}.{int(expires) + 1}.{signature}",
        f"{'0' * 12}.{expires}.{signature}",
        f"{key_id}.{expires}.{'0' * 64}",
        f"{key_id}.{expires}",
        value + "0",
        "",
    ):
        client.cookies.clear()
        client.cookies.set(COOKIE, wrong)
        assert client.get("/v1/index").status_code == 401, wrong
    client.cookies.clear()
    client.cookies.set(COOKIE, value)
    assert client.get("/v1/index").status_code == 200
    now = time.time()
    monkeypatch.setattr(session_module.time, "time", lambda: now + 101)
    assert client.get("/v1/index").status_code == 401


def test_a_session_ends_with_its_key_and_has_its_scope(client, keys):
    key_store = keys[0]
    token = key_store.create("leaver", "write")[1]
    assert client.post("/v1/session", headers=bearer(token)).status_code == 200
    headers = {"X-Requested-With": "fetch"}
    assert client.get("/v1/index").status_code == 200
    assert client.post("/v1/index/reload", headers=headers).status_code == 403
    key_store.revoke("leaver")
    assert client.get("/v1/index").status_code == 401


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://testserver:3000"}, False),
        ({"Origin": "http://testserver.evil.example"}, False),
        ({"Origin": "http://testserver"}, True),
        ({"X-Requested-With": "fetch"}, True),
    ],
)
def test_a_cookie_changes_nothing_for_another_page(client, keys, headers, allowed):
    sign_in(client, keys, "admin")
    response = client.post("/v1/index/reload", headers=headers)
    assert response.status_code == (200 if allowed else 403), response.text
    if not allowed:
        assert "X-Requested-With" in response.json()["next_step"]
    assert client.post("/v1/index/reload", headers={**headers, **bearer(keys[1]["admin"])}).status_code == 200


def test_without_keys_there_is_nothing_to_sign_in_to(clip_store, tiny_encoder, tmp_path):
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        assert client.get("/v1/session").json() == {
            "keys_required": False, "signed_in": False, "name": None, "scope": None, "expires_in_seconds": None,
        }  # fmt: skip
        assert client.post("/v1/session", headers=bearer("emcl_x")).status_code == 409
        assert client.delete("/v1/session").status_code == 204


def test_a_session_outlives_a_restart_and_not_its_secret(clip_store, tiny_encoder, folder, keys, tmp_path):
    with serving(clip_store, tiny_encoder, folder, require_keys=True) as client:
        sign_in(client, keys)
        value = client.cookies[COOKIE]
    with serving(clip_store, tiny_encoder, folder, require_keys=True) as client:
        client.cookies.set(COOKIE, value)
        assert client.get("/v1/index").status_code == 200
    make_keys(tmp_path)
    with serving(clip_store, tiny_encoder, tmp_path, require_keys=True) as client:
        client.cookies.set(COOKIE, value)
        assert client.get("/v1/index").status_code == 401
