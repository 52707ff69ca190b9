"""A service without keys: the pages of other origins can neither change nor compute anything."""

from __future__ import annotations

import pytest
from service_support import serving

PAGE = "https://page.example"
SEARCH = {"text": "a"}


@pytest.fixture(scope="module")
def client(clip_store, tiny_encoder, tmp_path_factory):
    with serving(clip_store, tiny_encoder, tmp_path_factory.mktemp("own"), cors_origins=PAGE) as made:
        yield made


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://testserver:3000"},
    {"Origin": "http://["},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://testserver"},
]
OWN = [
    {},
    {"Origin": "http://testserver"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://behind-a-proxy.example"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_foreign_page_changes_and_computes_nothing(client, headers):
    video_id = client.get("/v1/videos").json()["videos"][0]["video_id"]
    before = client.get("/v1/videos?state=any").json()
    form = {"files": {"file": ("a.mp4", b"x" * 100)}, "headers": headers}
    for answer in (
        client.post("/v1/search", json=SEARCH, headers=headers),
        client.post("/v1/search/video", **form),
        client.post("/v1/videos", **form),
        client.post("/v1/index/reload", headers=headers),
        client.delete(f"/v1/videos/{video_id}", headers=headers),
        client.patch(f"/v1/videos/{video_id}", json={"title": "x"}, headers=headers),
        client.post("/v1/captions", json={"captions": [{"text": "x"}]}, headers=headers),
        client.post("/v1/session", headers=headers),
    ):
        assert answer.status_code == 403, answer.request.url
        assert "another origin" in answer.json()["detail"]
    assert client.get("/v1/videos?state=any").json() == before


@pytest.mark.parametrize("headers", OWN)
def test_own_pages_and_programs_are_answered(client, headers):
    assert client.post("/v1/search", json=SEARCH, headers=headers).status_code == 200


def test_a_foreign_page_may_link_here_but_not_load_pictures(client):
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    video = client.get("/v1/videos").json()["videos"][0]
    assert client.get("/", headers=linked).status_code == 200
    assert client.get("/v1/videos", headers=linked).status_code == 200
    shown = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    assert client.get(video["thumbnail_url"], headers=shown).status_code == 403
    assert client.get("/health/live", headers=shown).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:80@evil", "evil@127.0.0.1", "127.0.0.1:x", "[::1", "127.0.0.1:1:2"])
def test_a_host_is_a_name_and_a_port(client, host):
    assert client.get("/v1/index", headers={"Host": host}).status_code == 421
