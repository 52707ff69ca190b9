"""``POST /v1/search/export`` and ``emcl search --save``: the hits of a search as files of other programs."""

import base64
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from service_support import assert_problem, emcl_command, serving

TEXT = "a red circle"


def export(client, **asked):
    return client.post("/v1/search/export", json={"text": TEXT, **asked})


def hits_of(client, **asked):
    return client.post("/v1/search", json={"text": TEXT, **asked}).json()["hits"]


def test_each_line_of_a_playlist_is_the_clip_of_a_hit(client):
    answer = export(client, format="m3u", k=3)
    assert answer.headers["content-type"] == "audio/x-mpegurl; charset=utf-8"
    assert answer.headers["content-disposition"].startswith('attachment; filename="a red circle.m3u8"')
    urls = [urlsplit(line) for line in answer.text.splitlines() if not line.startswith("#")]
    hits = hits_of(client, k=3)
    assert [url.path for url in urls] == [f"/v1/videos/{hit['video_id']}/clip" for hit in hits]
    assert urls[0].query == f"from={hits[0]['start']:.3f}&to={hits[0]['end']:.3f}"
    clip = client.get(f"{urls[0].path}?{urls[0].query}")
    assert clip.content[4:8] == b"ftyp"


def test_an_edit_list_names_the_files(client):
    answer = export(client, format="edl", k=2, frame_rate=30)
    names = re.findall(r"^\* FROM CLIP NAME: (.*)$", answer.text, re.MULTILINE)
    assert names == [f"{hit['title']}.mp4" for hit in hits_of(client, k=2)]
    end = hits_of(client, k=1)[0]["end"]
    assert f"00:00:00:00 00:00:{int(end):02d}:{round(end % 1 * 30):02d} 01:00:00:00" in answer.text


def test_a_page_has_the_picture_of_every_moment(client):
    answer = export(client, format="html", k=3)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', answer.text)
    hits = hits_of(client, k=3)
    assert [base64.b64decode(picture) for picture in pictures] == [
        client.get(hit["thumbnail_url"]).content for hit in hits
    ]
    assert 'src="/' not in answer.text
    assert answer.headers["content-disposition"].startswith("attachment;")


def test_likeness_to_a_video_and_filters_are_exported_too(client, video_id):
    answer = client.post(
        "/v1/search/export", json={"video_id": video_id, "format": "m3u", "filter": {"tags": ["even"]}}
    )
    title = client.get(f"/v1/videos/{video_id}").json()["title"]
    assert f"#PLAYLIST:Like {title}" in answer.text
    assert 1 <= answer.text.count("/clip?") <= 3


def test_a_file_that_is_gone_has_no_picture_but_its_title(clip_store, tiny_encoder, tmp_path):
    clips = clip_store / "clips"
    with serving(clip_store, tiny_encoder, tmp_path) as client:
        clip = clips / "clip_0.mp4"
        clip.rename(clips / "away")
        try:
            answer = export(client, format="html", k=6)
        finally:
            (clips / "away").rename(clip)
    assert answer.text.count("data:image/jpeg") == 5
    assert "clip_0" in answer.text


@pytest.mark.parametrize(
    ("changes", "mentions"),
    [
        ({"format": "docx"}, "format"),
        ({"format": "m3u", "text": None}, "text"),
        ({"format": "m3u", "text": None, "texts": ["a"]}, "texts"),
        ({"format": "edl", "frame_rate": 0}, "frame_rate"),
        ({"format": "html", "k": 201}, "200"),
        ({"format": "m3u", "k": 0}, "k"),
    ],
)
def test_bad_requests_are_refused_with_what_to_do(client, changes, mentions):
    assert_problem(export(client, **changes), 422, mentions=mentions)


@pytest.fixture
def search(monkeypatch, capsys, clip_store, tiny_checkpoint):
    run = emcl_command(monkeypatch, capsys, "search")
    return lambda *arguments: run("--store", clip_store / "store", "--model", tiny_checkpoint, *arguments)


def test_the_command_names_files_of_this_machine(search, clip_store, tmp_path):
    code, out, err = search(TEXT, "--k", 2, "--json", "--save", tmp_path / "dogs.m3u8")
    assert code == 0, err
    listed = [line for line in (tmp_path / "dogs.m3u8").read_text("utf-8").splitlines() if not line.startswith("#")]
    expected = [clip_store / "clips" / f"{hit['title']}.mp4" for hit in json.loads(out)["hits"]]
    assert [Path(unquote(urlsplit(line).path)) for line in listed] == expected


@pytest.mark.parametrize("fusion", ["visual", "text"])
def test_a_page_to_share_does_not_say_where_files_are(search, clip_store, tmp_path, fusion):
    code, _, err = search(TEXT, "--fusion", fusion, "--save", tmp_path / "page.html")
    assert code == 0, err
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "data:image/jpeg" in text
    assert str(clip_store) not in text
    assert "file:" not in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([TEXT, "--save", "hits.txt"], ".m3u8"),
        (["--video", "x.mp4", "--save", "hits.edl"], "--save goes with words"),
        ([TEXT, "-k", "201", "--save", "hits.html"], "200"),
    ],
)
def test_wrong_usage_is_refused_before_anything_loads(search, arguments, complaint):
    code, out, err = search(*arguments)
    assert (code, out) == (2, "")
    assert complaint in err
