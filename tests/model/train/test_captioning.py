"""``task: captioning``: trains, resumes to the bit, leaves the model's features alone, writes fitting captions."""

import json

import pytest
import torch
from training_support import assert_resumes_in_the_same_bits, tiny, tiny_settings, weights

from model.checkpoint import read_metadata, save_checkpoint
from model.config import CaptionConfig
from model.evaluate.captioning import CaptionFigures
from model.net import build_net
from model.tasks.captioning import CaptionHead, vocabulary, words_of
from model.train.run import Trainer, train

HEAD = {"dim": 32, "heads": 2, "inner": 64, "length": 40, "dropout": 0.1, "emcl": {"num_bases": 4, "iterations": 2}}


def settings(**changes):
    model = {**tiny_settings()["model"], "caption": HEAD}
    return {"task": "captioning", "train_encoder": False, "model": model, **changes}


def captioning(**changes):
    return tiny(**settings(**changes))


@pytest.mark.parametrize("changes", [{}, {"train_encoder": True, "joint_emcl": False}, {"contrast_weight": 0.2}])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(tmp_path, monkeypatch, changes):
    assert_resumes_in_the_same_bits(monkeypatch, captioning(**changes, validate_every=6), tmp_path)


def test_the_head_alone_is_trained_and_the_fingerprint_stays(tmp_path):
    start = save_checkpoint(build_net(tiny().model), tmp_path / "start.safetensors")
    path = train(captioning(start_from=str(start), steps=3), tmp_path / "run")
    before, after = weights(start), weights(path)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"captioner"}
    fingerprints = [json.loads(p.with_suffix(".json").read_text())["fingerprint"] for p in (start, path)]
    assert fingerprints[0] == fingerprints[1]
    assert read_metadata(path)["task"] == "captioning"
    fresh = Trainer(captioning(start_from=str(start)), tmp_path / "none").net
    moved = [
        name
        for name, tensor in fresh.captioner.state_dict().items()
        if not torch.equal(after[f"captioner.{name}"], tensor)
    ]
    assert "captioner.words.weight" in moved
    assert "emcl.state" in moved
    carried = Trainer(tiny(start_from=str(path)), tmp_path / "again").net
    assert torch.equal(carried.captioner.captioner.output.weight, after["captioner.captioner.output.weight"])


def test_an_encoder_that_is_trained_moves_but_for_its_texts(tmp_path):
    net = Trainer(captioning(train_encoder=True), tmp_path / "none").net
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    after = weights(train(captioning(train_encoder=True, steps=2), tmp_path / "run"))
    moved = {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}
    assert "clip.model.visual.conv1.weight" in moved
    assert "clip.model.token_embedding.weight" not in moved
    assert "emcl.state" not in moved


def test_captions_come_from_what_is_seen(tmp_path):
    """Ten scenes by heart: the captions of the clips beat the same captions in another order by far."""
    config = captioning(
        steps=1, contrast_weight=0, joint_emcl=False, model={**settings()["model"], "caption": {**HEAD, "dropout": 0}}
    )
    trainer = Trainer(config, tmp_path)
    trainer.net.eval()
    batch = trainer.data.batch(0)
    with torch.no_grad():
        (features,) = trainer.task.encode(batch, torch.device("cpu"))
    features = features / features.std() + torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    mask, ids = trainer.task.targets(batch)
    head = trainer.net.captioner.train()
    optimiser = torch.optim.Adam(head.parameters(), 2e-3)
    for _ in range(400):
        optimiser.zero_grad()
        head.loss(features, mask, ids, torch.zeros(()), weight=0.0, joint_emcl=False).backward()
        optimiser.step()
    written = [caption.text for caption in head.eval().write(features, mask)]
    assert written == [" ".join(words_of(text)) for text in batch.captions]
    figures = CaptionFigures()
    figures.add(written, [(text,) for text in batch.captions])
    metrics = figures.metrics()["captions"]
    assert metrics["BLEU-4"] == pytest.approx(100, abs=1e-4)
    assert metrics["CIDEr"] > 5 * metrics["shuffled CIDEr"]


def test_validation_is_logged_and_the_best_is_kept(tmp_path):
    path = train(captioning(steps=4, validate_every=2, keep_best=True), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line["validation"]["captions"] for line in lines if "validation" in line]
    assert [figures["videos"] for figures in found] == [8, 8]
    assert {"BLEU-4", "ROUGE-L", "CIDEr", "shuffled CIDEr"} <= set(found[0])
    assert read_metadata(path)["selected"].startswith("best validation BLEU-4 + ROUGE-L + CIDEr: ")
    assert "emcl" in next(line for line in lines if "loss" in line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny_settings()["model"]}, "trains model.caption, which is not there"),
        ({"task": "retrieval", "train_encoder": True}, "task retrieval does not train model.caption"),
        ({"contrast_weight": 0}, "joint_emcl, without a contrast"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing, with train_encoder: false"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        captioning(**changes)
    with pytest.raises(ValueError, match="train_encoder: false has no effect with task retrieval"):
        tiny(train_encoder=False)


def head_of(words=("a", "red", "ring"), **changes):
    return CaptionHead(6, CaptionConfig(words=words, dim=8, heads=2, inner=16, dropout=0, **changes)).eval()


def test_words_and_their_ids():
    assert words_of("On a plain gray background, a Ring - it's!") == [
        "on",
        "a",
        "plain",
        "gray",
        "background",
        "a",
        "ring",
        "it's",
    ]
    assert vocabulary(["a red ring", "a ring", "a"], 2) == ("a", "ring")
    with pytest.raises(ValueError, match="occurs 9 times"):
        vocabulary(["a"], 9)
    head = head_of(length=5)
    assert head.word_ids(["a red ring", "A unicorn", "red red red red"]).tolist() == [
        [2, 6, 7, 8, 3],
        [2, 6, 1, 3, 0],
        [2, 7, 7, 7, 3],
    ]


def test_padding_and_other_videos_change_nothing():
    head, generator = head_of(), torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 6, generator=generator)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    both = head.write(features, mask)
    alone = [head.write(features[:1], mask[:1])[0], head.write(features[1:, :3], mask[1:, :3])[0]]
    assert [caption.text for caption in both] == [caption.text for caption in alone]
    assert [caption.score for caption in both] == pytest.approx([caption.score for caption in alone], abs=1e-5)
    ids = head.word_ids(["a ring"])
    losses = [
        head.loss(features[1:, :frames], mask[1:, :frames], ids, torch.zeros(()), weight=0.5, joint_emcl=False)
        for frames in (3, 5)
    ]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


def test_frames_are_the_middles_of_equal_parts():
    head = head_of(frames=3)
    features = torch.arange(18.0).view(2, 9, 1).expand(-1, -1, 6)
    mask = torch.arange(9)[None] < torch.tensor([[9], [2]])
    taken, kept = head.take_frames(features, mask)
    assert taken[0, :, 0].tolist() == [1, 4, 7]
    assert taken[1, :2, 0].tolist() == [9, 10]
    assert kept.tolist() == [[True] * 3, [True, True, False]]
