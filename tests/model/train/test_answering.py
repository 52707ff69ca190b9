"""``task: qa``: trains, resumes to the bit, leaves the model's features alone, and answers from what is seen."""

import json

import pytest
import torch
from training_support import assert_resumes_in_the_same_bits, tiny, tiny_settings, weights
from typer.testing import CliRunner

from model.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from model.cli import app
from model.config import QaConfig
from model.data.batches import Question
from model.demo.corpus import write_corpus
from model.evaluate.answering import AnswerFigures
from model.net import build_net
from model.tasks.answering import AnswerHead, frequent_answers
from model.train.run import Trainer, train

HEAD = {"layers": 1, "projected": 16, "hidden": 32, "emcl": {"num_bases": 4, "iterations": 2}}


def settings(**changes):
    model = {**tiny_settings()["model"], "qa": HEAD}
    return {"task": "qa", "train_encoder": False, "model": model, **changes}


def answering(**changes):
    return tiny(**settings(**changes))


@pytest.mark.parametrize("changes", [{}, {"train_encoder": True, "joint_emcl": False}, {"contrast_weight": 0.2}])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(tmp_path, monkeypatch, changes):
    assert_resumes_in_the_same_bits(monkeypatch, answering(**changes, validate_every=6), tmp_path)


def test_the_head_alone_is_trained_and_the_fingerprint_stays(tmp_path):
    start = save_checkpoint(build_net(tiny().model), tmp_path / "start.safetensors")
    path = train(answering(start_from=str(start), steps=3), tmp_path / "run")
    before, after = weights(start), weights(path)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"answerer"}
    fingerprints = [json.loads(p.with_suffix(".json").read_text())["fingerprint"] for p in (start, path)]
    assert fingerprints[0] == fingerprints[1]
    assert read_metadata(path)["task"] == "qa"
    assert "circle" in load_checkpoint(path).answerer.config.answers, "the list travels in the checkpoint"
    fresh = Trainer(answering(start_from=str(start)), tmp_path / "none").net.answerer.state_dict()
    moved = {name for name, tensor in fresh.items() if not torch.equal(after[f"answerer.{name}"], tensor)}
    assert moved >= {"net.answer.0.weight", "net.video_projection.weight", "emcl.state"}
    carried = Trainer(tiny(start_from=str(path)), tmp_path / "again").net
    assert torch.equal(carried.answerer.net.answer[2].weight, after["answerer.net.answer.2.weight"])


def test_an_encoder_that_is_trained_learns_from_questions_too(tmp_path):
    net = Trainer(answering(train_encoder=True), tmp_path / "none").net
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    after = weights(train(answering(train_encoder=True, steps=2), tmp_path / "run"))
    moved = {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}
    assert {"clip.model.visual.conv1.weight", "clip.model.token_embedding.weight"} <= moved
    assert "emcl.state" not in moved


def test_answers_come_from_what_is_seen(tmp_path):
    """The questions of one batch by heart: with the frames of other clips the same questions get other answers."""
    trainer = Trainer(answering(steps=1, batch_size=16), tmp_path)
    trainer.net.eval()
    batch = trainer.data.batch(0)
    with torch.no_grad():
        features, words = trainer.task.encode(batch, torch.device("cpu"))
    features = features / features.std() + torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    mask, word_mask, labels = trainer.task.targets(batch)
    head = trainer.net.answerer.train()
    optimiser = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        scale = trainer.net.clip.logit_scale.detach()
        head.loss(features, mask, words, word_mask, labels, scale, weight=0.5, joint_emcl=True).backward()
        optimiser.step()
    found = head.eval().answer(features, mask, words, word_mask)
    assert [best.text for best, *_ in found] == [question.answer for (question,) in batch.questions]
    assert all(sum(one.probability for one in some) <= 1 + 1e-5 for some in found)
    rolled = head.answer(features.roll(1, 0), mask, words, word_mask)
    assert [best.text for best, *_ in rolled] != [best.text for best, *_ in found]


def test_validation_is_logged_and_the_best_is_kept(tmp_path):
    path = train(answering(steps=4, validate_every=2, keep_best=True), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line["validation"]["questions"] for line in lines if "validation" in line]
    assert len(found) == 2
    assert found[0]["questions"] == found[1]["questions"] > 8  # several about each clip
    assert {"top-1", "top-5", "answerable top-1", "floor", "what top-1", "how top-1"} <= set(found[0])
    assert read_metadata(path)["selected"].startswith("best validation top-1: ")
    assert "emcl" in next(line for line in lines if "loss" in line)


def head_of(answers=("red", "blue", "two")):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AnswerHead(8, QaConfig(answers=answers, frames=4, **HEAD)).eval()


def test_unanswerable_questions_count_as_wrong_and_teach_no_answer():
    head = head_of()
    assert head.labels(["blue", "nobody"]).tolist() == [1, -1]
    figures = AnswerFigures(head)
    asked = [
        Question(video_id="v", text="?", answer=answer, kind=kind)
        for answer, kind in (("red", "what"), ("blue", "what"), ("nobody", "who"), ("two", "how"))
    ]
    figures.add(asked, torch.eye(3)[[0, 1, 2, 0]])
    found = figures.metrics()["questions"]
    assert (found["top-1"], found["answerable top-1"]) == (50.0, pytest.approx(200 / 3))
    assert (found["what top-1"], found["who top-1"], found["how top-1"], found["floor"]) == (100.0, 0.0, 0.0, 25.0)
    assert (found["questions"], found["answerable questions"]) == (4.0, 3.0)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 8, generator=generator), torch.ones(2, 3, dtype=torch.bool)] * 2
    loss = head.loss(*inputs, torch.tensor([-1, -1]), torch.zeros(()), weight=0.0, joint_emcl=False)
    assert loss.item() == 0


def test_padding_other_questions_and_extra_frames_change_nothing():
    head, generator = head_of(), torch.Generator().manual_seed(0)
    frames, words = torch.randn(2, 4, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    word_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    both = head.logits(frames, mask, words, word_mask)[0]
    alone = head.logits(frames[1:, :2], mask[1:, :2], words[1:, :3], word_mask[1:, :3])[0]
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)
    many = head.logits(frames[:1].repeat_interleave(3, 1), mask[:1].repeat(1, 3), words[:1], word_mask[:1])[0]
    torch.testing.assert_close(many, both[:1], atol=1e-5, rtol=1e-5)  # the middle one of each three


@pytest.fixture(scope="module")
def asked_videos(tmp_path_factory):
    """Six clips from disk with three questions about each, in MSRVTT-QA's files."""
    folder = tmp_path_factory.mktemp("asked")
    for split, count in (("train", 4), ("val", 2)):
        listed = write_corpus(folder / split, split=split, count=count, seed=0, captions=1, workers=1)
        names = [json.loads(line)["video"] for line in listed.read_text(encoding="utf-8").splitlines()]
        lines = [
            {
                "question": f"what is {n}?",
                "answer": ("man", "dog", "guitar")[n],
                "video_id": name[:-4],
                "answer_type": "what",
            }
            for name in (name.rpartition("/")[2] for name in names)
            for n in range(3)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "answers.json").write_text(json.dumps({"dog": 0, "man": 1}), encoding="utf-8")
    return folder


def from_files(folder, **changes):
    data = {
        "kind": "manifest",
        "train": str(folder / "train" / "captions.jsonl"),
        "validation": str(folder / "val" / "captions.jsonl"),
    }
    questions = {"train": str(folder / "train.jsonl"), "validation": str(folder / "val.jsonl")}
    return answering(data=data, questions={**questions, **changes}, epoch_of="captions", epochs=1, steps=None)


def test_the_published_files_are_trained_on(tmp_path, asked_videos):
    config = from_files(asked_videos, answers=str(asked_videos / "answers.json"))
    trainer = Trainer(config, tmp_path / "none")
    assert trainer.data.steps_per_epoch == 1  # of 12 questions, 8 fill a batch
    batch = trainer.data.batch(0)
    assert [question.text for (question,) in batch.questions] == batch.captions
    path = train(config, tmp_path / "run")
    assert load_checkpoint(path).answerer.config.answers == ("dog", "man")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    (found,) = [line["validation"]["questions"] for line in lines if "validation" in line]
    assert (found["questions"], found["answerable questions"]) == (6.0, 4.0)
    command = ["evaluate", "--task", "qa", "--data", str(asked_videos / "val"), "--model", str(path)]
    command += ["--questions", str(asked_videos / "val.jsonl"), "--json", str(tmp_path / "qa.json")]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "6 questions, 2 of them with an answer outside the model's list of 2; metric rules corrected" in said.output
    measured = json.loads((tmp_path / "qa.json").read_text(encoding="utf-8"))["questions"]
    assert measured == pytest.approx(found)
    assert measured["answerable top-1"] == pytest.approx(1.5 * measured["top-1"])
    rows = [line for line in said.output.splitlines() if line.startswith("| unanswerable")]
    turned = CliRunner().invoke(app, [*command, "--metric-rules", "reference"]).output
    assert [line for line in turned.splitlines() if line.startswith("| unanswerable")] == rows[::-1]
    for wrong in (["--candidates", "5"], ["--protocol", "frozen"]):
        refused = CliRunner().invoke(app, [*command, *wrong])
        assert "no effect with --task qa" in str(refused.exception)
    own = Trainer(from_files(asked_videos), tmp_path / "own").net.answerer.config.answers
    assert set(own) == {"man", "dog", "guitar"}


def test_the_most_frequent_answers_come_first():
    assert frequent_answers(["b", "a", "c", "c"], 2) == ("c", "a")
    with pytest.raises(ValueError, match="no answers"):
        frequent_answers([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny_settings()["model"]}, "trains model.qa, which is not there"),
        ({"task": "retrieval", "train_encoder": True}, "task retrieval does not train model.qa"),
        ({"contrast_weight": 0}, "joint_emcl, without a contrast"),
        ({"questions": {"train": "train.jsonl"}}, "questions has no effect with generated scenes"),
        ({"data": {"kind": "synthetic", "object_steps": 0.5}}, "task qa has no questions about"),
        ({"data": {"kind": "manifest", "train": "captions.jsonl"}}, "needs questions"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        answering(**changes)
    with pytest.raises(ValueError, match="questions has no effect with task retrieval"):
        tiny(questions={"train": "train.jsonl"})
