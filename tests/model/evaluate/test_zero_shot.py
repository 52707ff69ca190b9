"""Zero-shot classification against composed golden numbers (``golden/rest/zero_shot_classes``), labels, the command."""

import copy

import numpy as np
import pytest
import torch
from heads_support import golden_emcl, tensors
from numeric_support import assert_within_rounding, score_tolerance, unit_roundoff
from typer.testing import CliRunner

from model.cli import app
from model.evaluate.labels import check_labels, prompts_of, read_labels
from model.evaluate.zero_shot import accuracy, classify, similarity


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/zero_shot_classes"))


@pytest.mark.parametrize("name", ["plain", "emcl_a", "emcl_b"])
def test_similarities_and_accuracy(arrays, name):
    emcl = None if name == "plain" else golden_emcl(arrays, f"{name}/", 32)
    with torch.no_grad():
        found = similarity(arrays["videos"], arrays["prompts"], emcl)
        double = None if emcl is None else copy.deepcopy(emcl).double()
        assert_within_rounding(
            found,
            arrays[f"{name}/similarity"],
            lambda: similarity(arrays["videos"].double(), arrays["prompts"].double(), double),
        )
    expected = float(arrays[f"{name}/accuracy1"]) * 100
    assert accuracy(found, arrays["labels"]) == pytest.approx(expected, rel=2 * unit_roundoff(np.float32))
    assert accuracy(found, arrays["labels"], top=5) == 100.0


def test_probabilities_are_those_of_the_model_s_scale(tiny_encoder):
    rng = np.random.default_rng(0)
    features, mask = rng.normal(size=(4, 32)).astype(np.float32), np.array([True, True, True, False])
    labels = ["one", "two", "three"]
    prompts = tiny_encoder.encode_texts(prompts_of(labels, "a video of {}"))
    found = classify(tiny_encoder, features, mask, labels, prompts)
    unit = features[:3] / np.linalg.norm(features[:3], axis=1, keepdims=True)
    video = unit.mean(axis=0) / np.linalg.norm(unit.mean(axis=0))
    cosines = prompts @ video / np.linalg.norm(prompts, axis=1)
    weights = np.exp(cosines * float(tiny_encoder.net.clip.logit_scale.detach().exp()))
    expected = {label: (c, w / weights.sum()) for label, c, w in zip(labels, cosines, weights, strict=True)}
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    # Frames, their mean and the product of the cosine; the scale multiplies the error of a cosine in the softmax.
    close = score_tolerance(32, products=3, condition=float(tiny_encoder.net.clip.logit_scale.detach().exp()))
    for item in found:
        assert (item.score, item.probability) == pytest.approx(expected[item.label], rel=0, abs=close)
    assert sum(item.probability for item in found) == pytest.approx(1)


@pytest.mark.parametrize(
    ("labels", "prompt", "message"),
    [
        ([], "{}", "0 labels were given, expected 1 to 1000"),
        (["x"] * 1001, "{}", "1001 labels"),
        (["a", " "], "{}", "empty"),
        (["a" * 201], "{}", "201 characters, at most 200"),
        (["a", "b", "a"], "{}", "'a' is given twice"),
        (["a"], "a video", "one {} for the label"),
        (["a"], "{} {}", "one {} for the label"),
    ],
)
def test_labels_that_cannot_be_used(labels, prompt, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, prompt)


def test_the_paper_s_prompt():
    assert prompts_of(["playing guitar"], "human action of {}") == ["human action of playing guitar"]
    assert prompts_of(["a {b}"], "{}!") == ["a {b}!"]


def test_a_file_of_labels(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffcat\n\n a dog \n", encoding="utf-8")
    assert read_labels(path) == ["cat", "a dog"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_labels(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no label"):
        read_labels(path)


def test_the_command_names_the_label(tmp_path, validation_folder, tiny_checkpoint):
    video = next(validation_folder.glob("*.mp4"))
    labels = tmp_path / "labels.txt"
    labels.write_text("a red circle\na blue star\n", encoding="utf-8")
    arguments = ["classify", str(video), "--labels", str(labels), "--model", str(tiny_checkpoint)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sorted(line.split("  ")[-1] for line in lines) == ["a blue star", "a red circle"]
    assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.11)
    assert isinstance(CliRunner().invoke(app, [*arguments, "--prompt", "none"]).exception, ValueError)
