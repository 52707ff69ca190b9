"""``POST /v1/answer`` and ``/v1/answer/video``: a model with an answer head, and one without."""

import json

import httpx
import pytest
from service_support import assert_problem, ids_of, serving, with_head

from model.config import QaConfig
from service.client import Client

ANSWERS = ("red", "blue", "circle", "two")
HEAD = QaConfig(answers=ANSWERS, layers=1, projected=16, hidden=32, frames=8)


@pytest.fixture(scope="module")
def answerer(tiny_encoder):
    """The tiny model with an untrained head."""
    return with_head(tiny_encoder, lambda net: net.attach_answerer(HEAD))


@pytest.fixture(scope="module")
def asked(answerer, clip_store, tmp_path_factory):
    with serving(clip_store, answerer, tmp_path_factory.mktemp("answers")) as client:
        yield client


def test_an_indexed_video_and_its_segment_get_the_same_answers(asked):
    body = {"video_id": ids_of(asked)["clip_0"], "question": "what color is it?"}
    answer = asked.post("/v1/answer", json=body).json()
    assert {found["answer"] for found in answer["answers"]} == set(ANSWERS)
    probabilities = [found["probability"] for found in answer["answers"]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)
    assert (answer["upload"], answer["truncated"]) == (None, False)
    one = asked.post("/v1/answer", json={**body, "segment": 0, "top": 1}).json()  # it has one segment
    assert [found["answer"] for found in one["answers"]] == [answer["answers"][0]["answer"]]
    other = asked.post("/v1/answer", json={**body, "question": "how many objects are there?"}).json()
    assert other["answers"] != answer["answers"]
    long = asked.post("/v1/answer", json={**body, "question": "what color is it? " * 27}).json()
    assert long["truncated"]


def test_an_upload_is_answered_as_the_indexed_video_is(asked, clip_store):
    content = (clip_store / "clips" / "clip_0.mp4").read_bytes()
    form = {"question": "what color is it?", "top": "4"}
    response = asked.post("/v1/answer/video", files={"file": content}, data=form)
    stored = asked.post("/v1/answer", json={"video_id": ids_of(asked)["clip_0"], "question": form["question"]}).json()
    answer = response.json()
    assert answer["upload"]["frames"] > 0
    expected = {found["answer"]: found["probability"] for found in stored["answers"]}
    for found in answer["answers"]:  # the index holds half precision
        assert found["probability"] == pytest.approx(expected[found["answer"]], abs=2e-2)
    timing = response.headers["server-timing"]
    assert {"receive", "decode", "encode", "answer"} <= {part.split(";")[0].strip() for part in timing.split(",")}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"question": None}, 422),
        ({"question": ""}, 422),
        ({"question": "  "}, 422),
        ({"question": "a" * 501}, 422),
        ({"question": "half \ud800"}, 422),
        ({"top": 0}, 422),
        ({"top": 101}, 422),
        ({"video_id": "no id"}, 422),
        ({"video_id": "0" * 64}, 404),
        ({"segment": 99}, 404),
        ({"other": 1}, 422),
    ],
)
def test_bad_requests_are_refused_with_what_to_do(asked, body, status):
    sent = {"video_id": ids_of(asked)["clip_0"], "question": "what is it?", **body}
    response = asked.post("/v1/answer", content=json.dumps(sent), headers={"Content-Type": "application/json"})
    assert_problem(response, status)


def test_bad_uploads_are_refused(asked, clip_store):
    content = (clip_store / "clips" / "clip_0.mp4").read_bytes()
    good = {"question": "what is it?"}
    assert_problem(asked.post("/v1/answer/video", files={"file": b"no video"}, data=good), 415)
    for form in ({}, {"question": ["a?", "b?"]}, {"question": "a" * 501}, {**good, "top": "many"}, {**good, "x": "1"}):
        assert_problem(asked.post("/v1/answer/video", files={"file": content}, data=form), 422)
    assert_problem(asked.post("/v1/answer/video", files={"file": content}, data={"question": "ä" * 5000}), 413)


def test_a_model_without_a_head_says_how_to_get_one(client, video_id, clips):
    for response in (
        client.post("/v1/answer", json={"video_id": video_id, "question": "what is it?"}),
        client.post("/v1/answer/video", files={"file": clips[0]}, data={"question": "what is it?"}),
    ):
        problem = assert_problem(response, 409, slug="conflict", mentions="task: qa")
        assert "no answer head" in problem["detail"]


def test_the_client_has_both(answerer, clip_store, tmp_path):
    with serving(clip_store, answerer, tmp_path) as http:
        video_id = ids_of(http)["clip_1"]

        def forward(request):
            answer = http.request(request.method, str(request.url), content=request.read(), headers=request.headers)
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        client = Client("http://testserver", transport=httpx.MockTransport(forward))
        stored = client.answer(video_id, "what color is it?", segment=0)
        assert stored.answers == client.answer(video_id, "what color is it?").answers
        assert len(client.answer_video(clip_store / "clips" / "clip_1.mp4", "who?", top=2).answers) == 2
