"""``POST /v1/caption`` and ``/v1/caption/video``: a model with a caption head, and one without."""

import json

import httpx
import pytest
from service_support import assert_problem, ids_of, serving, with_head

from model.config import CaptionConfig
from service.client import Client

WORDS = ("a", "red", "blue", "circle", "star", "moves", "left")
HEAD = CaptionConfig(words=WORDS, dim=32, heads=2, inner=64, length=12)


@pytest.fixture(scope="module")
def captioner(tiny_encoder):
    """The tiny model with an untrained head that likes to end after some words."""
    return with_head(tiny_encoder, lambda net: net.attach_captioner(HEAD))


@pytest.fixture(scope="module")
def writer(captioner, clip_store, tmp_path_factory):
    with serving(clip_store, captioner, tmp_path_factory.mktemp("captions")) as client:
        yield client


def test_an_indexed_video_and_its_segment_get_the_same_caption(writer):
    video_id = ids_of(writer)["clip_0"]
    answer = writer.post("/v1/caption", json={"video_id": video_id}).json()
    assert answer["caption"]
    assert set(answer["caption"].split()) <= set(WORDS)
    assert answer["score"] <= 0
    assert answer["upload"] is None
    one = writer.post("/v1/caption", json={"video_id": video_id, "segment": 0}).json()  # it has one segment
    assert (one["caption"], one["score"]) == (answer["caption"], pytest.approx(answer["score"], abs=1e-6))


def test_an_upload_is_described_as_the_indexed_video_is(writer, clip_store):
    content = (clip_store / "clips" / "clip_0.mp4").read_bytes()
    answer = writer.post("/v1/caption/video", files={"file": content}).json()
    stored = writer.post("/v1/caption", json={"video_id": ids_of(writer)["clip_0"]}).json()
    assert answer["upload"]["frames"] > 0
    assert answer["score"] == pytest.approx(stored["score"], abs=2e-2)  # the index holds half precision
    timing = writer.post("/v1/caption/video", files={"file": content}).headers["server-timing"]
    assert {"receive", "decode", "encode", "answer"} <= {part.split(";")[0].strip() for part in timing.split(",")}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"video_id": "no id"}, 422),
        ({"video_id": "0" * 64}, 404),
        ({"segment": -1}, 422),
        ({"segment": 99}, 404),
        ({"other": 1}, 422),
    ],
)
def test_bad_requests_are_refused_with_what_to_do(writer, body, status):
    asked = {**({} if not body else {"video_id": ids_of(writer)["clip_0"]}), **body}
    assert_problem(
        writer.post("/v1/caption", content=json.dumps(asked), headers={"Content-Type": "application/json"}), status
    )


def test_bad_uploads_are_refused(writer):
    assert_problem(writer.post("/v1/caption/video", files={"file": b"no video"}), 415)
    assert_problem(writer.post("/v1/caption/video", files={"file": b""}), 422)
    assert_problem(writer.post("/v1/caption/video", json={}), 415)


def test_a_model_without_a_head_says_how_to_get_one(client, video_id, clips):
    for response in (
        client.post("/v1/caption", json={"video_id": video_id}),
        client.post("/v1/caption/video", files={"file": clips[0]}),
    ):
        problem = assert_problem(response, 409, slug="conflict", mentions="task: captioning")
        assert "no caption head" in problem["detail"]


def test_the_client_has_both(captioner, clip_store, tmp_path):
    with serving(clip_store, captioner, tmp_path) as http:
        video_id = ids_of(http)["clip_1"]

        def forward(request):
            answer = http.request(request.method, str(request.url), content=request.read(), headers=request.headers)
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        client = Client("http://testserver", transport=httpx.MockTransport(forward))
        assert client.write_caption(video_id).caption == client.write_caption(video_id, segment=0).caption
        assert client.write_caption_video(clip_store / "clips" / "clip_1.mp4").upload is not None
