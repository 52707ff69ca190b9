"""Filters by time of recording, camera, resolution and folder: in searches, listings, commands; who may use them."""

import json

import pytest
from service_support import assert_problem, bearer, emcl_command, make_keys, serving


def titles(client, **wanted):
    answer = client.post("/v1/search", json={"text": "a red circle", "filter": wanted})
    assert answer.status_code == 200, answer.text
    return sorted(hit["title"] for hit in answer.json()["hits"])


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"recorded_after": "2024-05-01"}, [4, 5]),
        ({"recorded_before": "2024-02-01"}, [0, 1]),  # to the end of that day
        ({"recorded_before": "2024-02-01T11:59:59"}, [0]),
        ({"recorded_before": "2024-02-01T13:00:00+01:00"}, [0, 1]),  # to this very moment
        ({"recorded_after": "2024-02-01T13:00:00+01:00", "recorded_before": "2024-03-31"}, [1, 2]),
        ({"camera": "canon"}, [0, 2, 4]),
        ({"camera": "canon", "tags": ["odd"]}, []),
        ({"min_height": 160}, [0, 1, 2, 3, 4, 5]),
        ({"min_height": 161}, []),
    ],
)
def test_searches_are_filtered(client, wanted, numbers):
    assert titles(client, **wanted) == [f"clip_{number}" for number in numbers]


def test_words_are_filtered_too(client):
    asked = {"text": "clip_0", "fusion": "text"}
    assert client.post("/v1/search", json=asked).json()["hits"][0]["title"] == "clip_0"
    later = client.post("/v1/search", json={**asked, "filter": {"recorded_after": "2024-02-01"}}).json()["hits"]
    assert "clip_0" not in [hit["title"] for hit in later]


def test_folders(client, clip_store):
    assert len(titles(client, folder=str(clip_store / "clips"))) == 6
    assert titles(client, folder=str(clip_store / "clips" / "clip_3.mp4")) == ["clip_3"]
    assert titles(client, folder=str(clip_store / "clip")) == []


def test_a_folder_is_for_those_who_see_paths(clip_store, tiny_encoder, tmp_path):
    _, tokens = make_keys(tmp_path)
    with serving(clip_store, tiny_encoder, tmp_path, require_keys=True) as client:
        asked = {"text": "a", "filter": {"folder": "/"}}
        for route, more in (("/v1/search", {}), ("/v1/search/export", {"format": "m3u"})):
            refused = client.post(route, json={**asked, **more}, headers=bearer(tokens["search"]))
            assert_problem(refused, 403, mentions="scope admin")
            assert client.post(route, json={**asked, **more}, headers=bearer(tokens["admin"])).status_code == 200


def test_videos_say_and_are_listed_by_when_they_were_recorded(client):
    listed = client.get("/v1/videos", params={"sort": "recorded"}).json()["videos"]
    assert [video["title"] for video in listed] == [f"clip_{number}" for number in (5, 4, 3, 2, 1, 0)]
    assert listed[-1]["recorded"] == "2024-01-01T12:00:00+00:00"
    assert (listed[-1]["camera"], listed[-2]["camera"], listed[-1]["place"]) == ("Canon EOS R5", None, None)


def test_the_command_takes_them(clip_store, tiny_checkpoint, monkeypatch, capsys):
    emcl = emcl_command(monkeypatch, capsys)
    search = ["search", "a red circle", "--store", str(clip_store / "store"), "--model", str(tiny_checkpoint), "--json"]

    def found(*options):
        code, out, err = emcl(*search, *options)
        assert code == 0, err
        return sorted(hit["title"] for hit in json.loads(out)["hits"])

    assert found("--after", "2024-02-01", "--before", "2024-03-01") == ["clip_1", "clip_2"]
    assert found("--camera", "EOS", "--folder", str(clip_store / "clips")) == ["clip_0", "clip_2", "clip_4"]
    assert found("--min-height", "1080") == []
    monkeypatch.chdir(clip_store)
    assert len(found("--folder", "clips")) == 6
    code, _, err = emcl(*search, "--after", "soon")
    assert code == 2
    assert "--after: 'soon' is not a date" in " ".join(err.replace("│", " ").split())
