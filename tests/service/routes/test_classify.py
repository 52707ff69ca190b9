"""``POST /v1/classify`` and ``/v1/classify/video``: answers and limits."""

import json
import math

import pytest

LABELS = ["a red circle", "a blue star", "a green ring"]


def ask(client, video_id, **changes):
    body = {"video_id": video_id, "labels": LABELS, **changes}
    return client.post("/v1/classify", json={name: value for name, value in body.items() if value is not None})


def test_labels_of_an_indexed_video(client, video_id):
    answer = ask(client, video_id).json()
    assert sorted(item["label"] for item in answer["labels"]) == sorted(LABELS)
    assert math.isclose(sum(item["probability"] for item in answer["labels"]), 1, abs_tol=1e-6)
    scores = [item["score"] for item in answer["labels"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["upload"] is None
    assert (answer["source"]["emcl"], answer["source"]["strength"]) == ("off", 0)
    other = ask(client, video_id, prompt="no {} here").json()
    assert other["labels"] != answer["labels"], "the prompt counts"
    assert ask(client, video_id, segment=0).json()["labels"] == answer["labels"], "it has one segment"
    assert ask(client, video_id, labels=LABELS[:1]).json()["labels"][0]["probability"] == 1


def test_an_upload_is_classified_as_the_indexed_video_is(client, clip_store):
    videos = {video["title"]: video["video_id"] for video in client.get("/v1/videos").json()["videos"]}
    content = (clip_store / "clips" / "clip_0.mp4").read_bytes()
    form = {"labels": LABELS, "prompt": "a video of {}"}
    answer = client.post("/v1/classify/video", files={"file": content}, data=form).json()
    stored = ask(client, videos["clip_0"]).json()
    assert [item["label"] for item in answer["labels"]] == [item["label"] for item in stored["labels"]]
    for one, other in zip(answer["labels"], stored["labels"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=2e-3)  # the index holds half precision
    assert answer["upload"]["frames"] > 0


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"labels": []}, 422),
        ({"labels": ["x" * 201]}, 422),
        ({"labels": [f"label {n}" for n in range(1001)]}, 422),
        ({"labels": ["a", "a"]}, 422),
        ({"labels": ["a", " "]}, 422),
        ({"labels": ["\ud800"]}, 422),
        ({"labels": "a"}, 422),
        ({"prompt": "no place"}, 422),
        ({"segment": -1}, 422),
        ({"video_id": "no id"}, 422),
        ({"video_id": "0" * 64}, 404),
        ({"segment": 99}, 404),
        ({"other": 1}, 422),
    ],
)
def test_bad_requests_are_refused_with_what_to_do(client, video_id, changes, status):
    body = {"video_id": video_id, "labels": LABELS, **changes}
    response = client.post("/v1/classify", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert response.json()["next_step"]


def test_bad_uploads_are_refused(client, clips):
    def post(data, content=clips[0]):
        return client.post("/v1/classify/video", files={"file": content}, data=data)

    assert post({}).status_code == 422
    assert post({"labels": ["a", "a"]}).status_code == 422
    assert post({"labels": LABELS, "prompt": ["{}", "{}"]}).status_code == 422
    assert post({"labels": LABELS, "k": "3"}).status_code == 422
    assert post({"labels": LABELS}, b"no video").status_code == 415
    assert client.post("/v1/classify/video", data={"labels": LABELS}).status_code in (415, 422)
    assert post({"labels": [f"{n} " + "x" * 195 for n in range(1000)]}).status_code == 200
    assert post({"labels": ["x" * 100_000] * 20}).status_code == 413
