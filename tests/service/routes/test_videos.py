"""Videos over HTTP: lists, ranges of their bytes, pictures, and files that went away."""

from email.utils import formatdate
from typing import get_args
from urllib.parse import unquote

import pytest
from service_support import PROBLEM, assert_problem, serving

from indexer.store.records import VideoOrder


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
    for header in (
        f"bytes={size}-",
        "bytes=-0",
        "bytes=9-3",
        "bytes=",
        "bytes=a-b",
        "bytes=0-1,9-3",
        f"bytes={'9' * 5000}-",
    ):
        refused = client.get(url, headers={"Range": header})
        assert_problem(refused, 416, slug="range-not-satisfiable")
        assert refused.headers["content-range"] == f"bytes */{size}"
    for header in ("lines=1-2", "nonsense", "items=9-3"):  # units that are not known are ignored
        ignored = client.get(url, headers={"Range": header})
        assert (ignored.status_code, ignored.content) == (200, content)
    head = client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
    part = client.get(url, headers={"Range": "bytes=0-3", "If-Range": '"another"'})
    assert (part.status_code, part.content) == (200, content)
    part = client.get(url, headers={"Range": "bytes=0-3", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, content[:4])


def test_what_a_client_holds_already_is_not_sent_again(client, clip_store, video_id):
    for url in (f"/v1/videos/{video_id}/stream", f"/v1/videos/{video_id}/thumbnail?t=1"):
        whole = client.get(url)
        etag = whole.headers["etag"]
        for known in (etag, f"W/{etag}", "*", f'"other", {etag}'):
            answer = client.get(url, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        changed = client.get(url, headers={"If-None-Match": '"other"', "If-Modified-Since": formatdate(usegmt=True)})
        assert (changed.status_code, changed.content) == (200, whole.content)
    assert etag != client.get(f"/v1/videos/{video_id}/thumbnail?t=0").headers["etag"]
    url = f"/v1/videos/{video_id}/stream"
    modified = client.get(url).headers["last-modified"]
    for since, status in ((modified, 304), (formatdate(0, usegmt=True), 200), ("yesterday", 200), ("9" * 5000, 200)):
        assert client.get(url, headers={"If-Modified-Since": since}).status_code == status, since[:40]


def test_a_version_that_is_not_here_is_refused(client, video_id):
    url = f"/v1/videos/{video_id}/stream"
    etag = client.get(url).headers["etag"]
    for wanted in (etag, "*", f'"other", {etag}'):
        assert client.get(url, headers={"If-Match": wanted}).status_code == 200
    assert_problem(client.get(url, headers={"If-Match": '"other"'}), 412, slug="precondition-failed")


def test_health_answers_head(client):
    for path in ("/health/live", "/health/ready"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")


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


def test_videos_are_listed_in_the_order_asked_for(client):
    def listed(**query):
        return client.get("/v1/videos", params=query).json()["videos"]

    ids = {video["video_id"] for video in listed()}
    assert [video["video_id"] for video in listed()] == sorted(ids)
    for order in get_args(VideoOrder):
        assert {video["video_id"] for video in listed(sort=order)} == ids, order
    titles = [video["title"] for video in listed(sort="title")]
    assert titles == sorted(titles)
    lengths = [video["duration_seconds"] for video in listed(sort="longest")]
    assert lengths == sorted(lengths, reverse=True)
    assert_problem(client.get("/v1/videos?sort=biggest"), 422, mentions="newest")


def test_a_browser_at_a_wrong_address_gets_a_page_and_programs_get_a_problem(client):
    page = client.get("/nowhere", headers={"Accept": "text/html,application/xhtml+xml"})
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (404, "text/html")
    assert "Page not found" in page.text
    assert_problem(client.get("/nowhere"), 404)
    assert_problem(client.get("/v1/nowhere", headers={"Accept": "text/html"}), 404)
    assert_problem(client.post("/nowhere", headers={"Accept": "text/html"}), 404)


def test_nginx_is_given_the_name_of_the_file_instead_of_its_bytes(clip_store, tiny_encoder, tmp_path):
    options = {"accel_redirect": "/media", "preview_folder": tmp_path / "a ?folder#"}
    with serving(clip_store, tiny_encoder, tmp_path, **options) as client:
        video = client.get("/v1/videos").json()["videos"][0]
        url = f"/v1/videos/{video['video_id']}"
        stream = client.get(f"{url}/stream", headers={"Range": "bytes=0-9"})
        assert (stream.status_code, stream.content) == (200, b"")  # nginx answers the range
        path = clip_store / "clips" / f"{video['title']}.mp4"
        assert unquote(stream.headers["x-accel-redirect"]) == f"/media{path}"
        assert stream.headers["content-type"] == "video/mp4"
        assert "immutable" in stream.headers["cache-control"]
        redirect = client.get(f"{url}/preview").headers["x-accel-redirect"]
        assert not {" ", "?", "#"} & set(redirect)
        assert unquote(redirect) == f"/media{tmp_path}/a ?folder#/{video['video_id']}.mp4"
        assert client.get(f"/v1/videos/{'0' * 64}/stream").status_code == 404


@pytest.mark.parametrize("location", ["media", "/media/", "/me dia", "/a\r\nX: y"])
def test_a_location_of_nginx_that_cannot_be_one_is_refused(location):
    from service.settings import load_settings

    with pytest.raises(ValueError, match="accel"):
        load_settings({"accel_redirect": location})
