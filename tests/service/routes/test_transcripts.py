"""Transcripts over HTTP: put, replaced, removed, searched at once, and served as captions of a player."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from library_support import make_app
from service_support import assert_problem

from indexer.sources.transcripts import parse

VTT = "WEBVTT\n\n00:00.500 --> 00:01.500\nthe tentacles of a <b>giant squid</b>\n"
SRT = "1\n00:00:01,000 --> 00:00:01,750\nder Riesenkalmar & sein Tintenfass\n"


@pytest.fixture
def client(clip_store: Path, tiny_encoder, tmp_path: Path):
    shutil.copytree(clip_store / "store", tmp_path / "store")
    with TestClient(make_app(tmp_path, tiny_encoder)) as made:
        yield made


@pytest.fixture
def url(client) -> str:
    return f"/v1/videos/{video_id(client)}/transcript"


def video_id(client) -> str:
    return client.get("/v1/videos").json()["videos"][3]["video_id"]


def hits(client, text: str, **asked: object) -> list[dict]:
    return client.post("/v1/search", json={"text": text, "k": 1, **asked}).raise_for_status().json()["hits"]


@pytest.mark.parametrize("fusion", ["auto", "text"])
def test_the_next_search_finds_the_moment_of_what_was_put(client, url, fusion):
    put = client.put(url, content=VTT, params={"language": "en"})
    assert (put.status_code, put.json()) == (200, {"language": "en", "cues": 1, "notes": []})
    (hit,) = hits(client, "giant squid", fusion=fusion)
    assert hit["video_id"] == video_id(client)
    assert "transcript" in hit["matched"]
    assert hit["passage"] == {"start": 0.5, "end": 1.5}
    assert hit["moment"] == 0.5
    assert hit["thumbnail_url"].endswith("t=0.500")
    assert [part["text"] for part in hit["snippet"] if part["match"]] == ["giant", "squid"]
    assert client.get(hit["thumbnail_url"]).status_code == 200


def test_replacing_and_removing_change_the_next_search(client, url):
    client.put(url, content=VTT)
    client.put(url, content=SRT)
    assert hits(client, "giant squid", fusion="text") == []
    assert hits(client, "riesenkalmar", fusion="text")[0]["passage"] == {"start": 1.0, "end": 1.75}
    assert client.delete(url).status_code == 204
    assert hits(client, "riesenkalmar", fusion="text") == []
    assert_problem(client.get(url), 404, slug="not-found")
    assert_problem(client.delete(url), 404, slug="not-found")
    assert client.get(f"/v1/videos/{video_id(client)}").json()["transcripts"] == []
    client.put(url, content=VTT)
    assert hits(client, "giant squid", fusion="text")


def test_a_video_lists_its_transcripts_by_language_and_serves_each_as_webvtt(client, url):
    client.put(url, content=VTT, params={"language": "en"})
    client.put(url, content=SRT, params={"language": "de"})
    listed = client.get(f"/v1/videos/{video_id(client)}").json()["transcripts"]
    assert [(one["language"], one["origin"], one["cues"]) for one in listed] == [("de", "http", 1), ("en", "http", 1)]
    german = client.get(listed[0]["url"])
    assert german.headers["content-type"].startswith("text/vtt")
    assert german.content == client.get(url).content
    assert parse(german.content, ".vtt").cues == parse(SRT.encode(), ".srt").cues
    assert "giant squid" in client.get(listed[1]["url"]).text
    etag = german.headers["etag"]
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
    client.put(url, content=VTT, params={"language": "de"})
    assert client.get(url, headers={"If-None-Match": etag}).status_code == 200
    assert client.head(url).headers["etag"] != etag
    page = client.get("/v1/videos").json()["videos"]
    assert [len(video["transcripts"]) for video in page if video["video_id"] == video_id(client)] == [2]
    assert_problem(client.get(url, params={"language": "fr"}), 404, mentions="de, en")
    assert client.delete(url, params={"language": "de"}).status_code == 204
    assert "giant squid" in client.get(url).text
    assert_problem(client.delete(url, params={"language": "de"}), 404)


def test_whispers_json_is_taken_and_a_guessed_encoding_stated(client, url):
    segments = {"segments": [{"start": 0, "end": 1, "text": "a giant squid"}]}
    assert client.put(url, content=json.dumps(segments)).json()["cues"] == 1
    answer = client.put(url, content=SRT.replace("Riesen", "Möwen").encode("cp1252")).json()
    assert "Windows-1252" in answer["notes"][0]
    assert client.put(url, content=("\ufeff" + VTT).encode("utf-16-le")).json()["notes"] == []


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (b"", "no cue"),
        (b"WEBVTT\n", "no cue"),
        (b"hello", "begin with"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\x00\x01", "zero bytes"),
        (b"1\n00:00:00,000 --> 00:00:01,000\n" + b"x" * 3000, "3,000 characters"),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(client, url, content, mentions):
    client.put(url, content=VTT)
    assert_problem(client.put(url, content=content), 422, mentions=mentions)
    assert hits(client, "giant squid", fusion="text")


def test_a_transcript_over_the_limit_of_bodies_is_too_large(client, url):
    assert_problem(client.put(url, content=b"x" * (1 << 20) + b"x"), 413, slug="too-large")


def test_unknown_videos_and_impossible_languages(client, url):
    unknown = f"/v1/videos/{'0' * 64}/transcript"
    assert_problem(client.get(unknown), 404)
    assert_problem(client.put(unknown, content=VTT), 404)
    assert_problem(client.delete(unknown), 404)
    for wrong in ("e", "english please", "../x", "a" * 99):
        for method in ("GET", "PUT", "DELETE"):
            assert_problem(client.request(method, url, params={"language": wrong}, content=VTT), 422)


def test_markup_in_a_cue_reaches_no_player(client, url):
    segments = {"segments": [{"start": 0, "end": 1, "text": "<img src=x onerror=alert(1)> & --> <v Bob>"}]}
    client.put(url, content=json.dumps(segments))
    assert "<" not in client.get(url).text
