"""``emcl study qa``: MSRVTT-QA's files, questions about scenes, training that learns, unanswerable questions."""

import json

import numpy as np
import pytest
import torch

from model.data.batches import Question
from model.data.dataset import DatasetError
from model.data.msrvtt_qa import questions_by_clip, read_answers, read_questions
from model.demo.questions import questions_of
from model.demo.scene import make_scene
from model.evaluate.answering import blind_answers
from model.heads.features import FeaturesError, FeatureSet
from model.options import QaOptions
from model.study.question_answering import WAYS, Asked, labels_of, study, table, train_one
from model.tasks.answering import frequent_answers

ANSWERS = ("red", "green", "blue")


def options(**changes):
    paths = dict.fromkeys(("train_features", "train", "test_features", "test"), "unused")
    sizes = {"steps": 60, "batch": 16, "learning_rate": 3e-3, "projected": 16, "hidden": 32}
    return QaOptions(**{**paths, **sizes, **changes})


def asked(encoder, seed, prefix, extra=()):
    """30 videos whose frames lean to one of three directions, which is the answer."""
    rng = np.random.default_rng(seed)
    directions = 3 * np.random.default_rng(0).normal(size=(3, encoder.dim))
    video = directions[np.arange(30) % 3][:, None] + rng.normal(size=(30, 2, encoder.dim))
    features = FeatureSet(
        kind="frames",
        arrays={"video": video.astype(np.float32), "video_mask": np.ones((30, 2), bool)},
        video_of_text_T=np.arange(30),
        video_ids=[f"{prefix}{n}.mp4" for n in range(30)],
        logit_scale=2.0,
        settings={"fingerprint": encoder.fingerprint},
    )
    questions = [
        Question(video_id=f"{prefix}{n}", text=f"what color is {n}?", answer=ANSWERS[n % 3], kind="what")
        for n in range(30)
    ]
    return Asked(features, [*questions, *extra], encoder)


def test_each_way_learns_and_unanswerable_questions_count_as_wrong(tiny_encoder):
    extra = [Question(video_id="w0", text="who?", answer="nobody", kind="who")] * 10
    train, test = asked(tiny_encoder, 1, "v"), asked(tiny_encoder, 2, "w", extra)
    lines = study(train, test, ANSWERS, options(), [0])
    assert [line.name for line in lines] == list(WAYS)
    for line in lines:
        (found,) = line.seeds
        assert (found.questions, found.answerable) == (40, 30)
        assert found.of_answerable[0] > 80  # a third by chance
        assert found.of_all[0] == pytest.approx(found.of_answerable[0] * 30 / 40)
        assert line.kinds[0]["who"] == 0
    text = table(lines, train, test, ANSWERS)
    assert "40 test questions, 10 of them with an answer outside the list of 3" in text
    assert (
        "| always 'red' | 25.0 |" in text or "| always 'green' | 25.0 |" in text or "| always 'blue' | 25.0 |" in text
    )


def test_the_same_seed_gives_the_same_net_and_each_way_another(tiny_encoder):
    train = asked(tiny_encoder, 1, "v")
    first, again, *others = (
        train_one(way, train, ANSWERS, options(steps=3), 0).state_dict() for way in (WAYS[0], *WAYS)
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert all(any(not torch.equal(tensor, other[name]) for name, tensor in first.items()) for other in others)


def test_foreign_features_and_shared_or_missing_videos_are_refused(tiny_encoder):
    train = asked(tiny_encoder, 1, "v")
    with pytest.raises(ValueError, match="30 videos are in both sets"):
        study(train, train, ANSWERS, options(), [0])
    with pytest.raises(ValueError, match="1 videos of questions have no features, such as gone"):
        asked(tiny_encoder, 1, "v", [Question(video_id="gone", text="who?", answer="red", kind="who")])
    pooled = FeatureSet(kind="pooled", arrays={}, video_of_text_T=np.arange(0))
    with pytest.raises(FeaturesError, match="got pooled"):
        Asked(pooled, [], tiny_encoder)


def test_files_of_the_set_are_read(tmp_path):
    line = {"answer": "couch", "question": "what are they on?", "video_id": "video1", "answer_type": "what"}
    path = tmp_path / "val.jsonl"
    path.write_text(json.dumps(line) + "\n\n" + json.dumps({**line, "answer": "music"}) + "\n", encoding="utf-8")
    questions = read_questions(path)
    assert [question.answer for question in questions] == ["couch", "music"]
    assert questions[0] == Question(video_id="video1", text="what are they on?", answer="couch", kind="what")
    assert frequent_answers((question.answer for question in [*questions, questions[1]]), 1) == ("music",)
    listing = tmp_path / "train_ans2label.json"
    listing.write_text('{"music": 1, "sofa": 0}', encoding="utf-8")
    assert read_answers(listing) == ("sofa", "music")
    assert labels_of(questions, read_answers(listing)).tolist() == [-1, 1]
    listing.write_text('{"music": 1, "sofa": 2}', encoding="utf-8")
    with pytest.raises(DatasetError, match="without gaps"):
        read_answers(listing)
    for wrong, message in (("{", "not JSON"), ('{"question": "who?"}', "there is no 'answer'"), ("", "no questions")):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(DatasetError, match=message):
            read_questions(path)


def test_answers_about_scenes_are_one_word_and_true():
    for index in range(200):
        scene = make_scene(3, "train", index)
        asked_of = {text: answer for text, answer, _ in questions_of(scene)}
        assert all(answer and " " not in answer for answer in asked_of.values())
        assert asked_of["how many objects are there?"] == ("one" if scene.second is None else "two")
        colour = asked_of.get(f"what color is the {scene.shape}?")
        assert colour in (None, scene.colour)
        if scene.then_colour is not None or (scene.second is not None and scene.second.shape == scene.shape):
            assert colour is None


def test_questions_find_their_clips_by_name_or_file_name():
    asked = [Question(video_id=name, text="who?", answer="man", kind="who") for name in ("video1", "b.mp4", "video1")]
    found = questions_by_clip(asked, ["/clips/video1.mp4", "b.mp4", "c.mp4"], "train.jsonl")
    assert [len(some) for some in found] == [2, 1, 0]
    with pytest.raises(DatasetError, match=r"train.jsonl: 2 of 3 questions are about videos that are not"):
        questions_by_clip(asked, ["b.mp4"], "train.jsonl")


def test_what_is_guessed_without_the_video():
    def question(text, answer, kind="what"):
        return Question(video_id="v", text=text, answer=answer, kind=kind)

    train = [question("color?", "red"), question("color?", "red"), question("color?", "blue")]
    train += [question("shape?", "star"), question("how many?", "two", "how")]
    test = [
        question(text, "", kind)
        for text, kind in (("color?", "what"), ("shape?", "what"), ("how?", "how"), ("?", "who"))
    ]
    assert blind_answers(train, test) == ["red", "star", "two", "red"]
