"""``emcl study zero-shot``: classes from files, which videos count, the table."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from model.cli import app
from model.evaluate.labels import prompts_of
from model.heads.features import FeaturesError, FeatureSet, write_features
from model.study.zero_shot import read_classes, study

LABELS = ["Archery", "Playing guitar", "Swimming"]


def features_near(encoder, *, fingerprint=None, noise=0.3):
    """Ten videos a class, each near its class's prompt."""
    prompts = encoder.encode_texts(prompts_of([label.lower() for label in LABELS], "human action of {}"))
    rng = np.random.default_rng(0)
    video = np.repeat(prompts, 10, axis=0)
    video = video + noise * np.linalg.norm(prompts, axis=1).mean() * rng.normal(size=video.shape) / np.sqrt(
        video.shape[1]
    )
    return FeatureSet(
        kind="pooled",
        arrays={"video": video.astype(np.float32), "text": video.astype(np.float32)},
        video_of_text_T=np.arange(30),
        video_ids=[f"v_{n}" for n in range(30)],
        settings={"fingerprint": encoder.fingerprint if fingerprint is None else fingerprint},
    )


def activitynet(tmp_path):
    database = {
        str(n): {"subset": "validation", "annotations": [{"label": LABELS[n // 10], "segment": [0, 1]}] * 2}
        for n in range(29)
    }
    database["29"] = {"subset": "testing", "annotations": []}
    path = tmp_path / "activity_net.v1-3.min.json"
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    return path


def test_videos_near_their_prompt_are_found_and_the_others_are_left_out(tmp_path, tiny_encoder):
    classes = read_classes(activitynet(tmp_path))
    assert len(classes) == 29
    lines, videos = study(features_near(tiny_encoder, noise=0.01), classes, tiny_encoder, "human action of {}")
    assert videos == 29
    assert (lines[0].name, lines[0].top1, lines[0].top5) == ("without EMCL", 100.0, 100.0)
    assert [line.name for line in lines[1:]] == [
        "EMCL reference, beta 4, per-query",
        "EMCL reference, beta 4, whole",
        "EMCL channel, beta 0.1, per-query",
        "EMCL channel, beta 0.1, whole",
    ]
    wrong = {name: LABELS[(LABELS.index(label) + 1) % 3] for name, label in classes.items()}
    assert study(features_near(tiny_encoder, noise=0.01), wrong, tiny_encoder, "human action of {}")[0][0].top1 == 0


def test_refusals(tmp_path, tiny_encoder):
    classes = {"v_0": "Archery"}
    with pytest.raises(FeaturesError, match="of model ffffffffffff"):
        study(features_near(tiny_encoder, fingerprint="f" * 64), classes, tiny_encoder, "{}")
    with pytest.raises(ValueError, match="none of the videos has a class"):
        study(features_near(tiny_encoder), {"other": "Archery"}, tiny_encoder, "{}")
    path = tmp_path / "x.json"
    for content, message in (
        ("[1]", "must be ActivityNet's file"),
        ("{", "is not JSON"),
        ('{"database": {"a": {}}}', "a has no list of annotations"),
        ('{"database": {"a": {"annotations": [{"label": "x"}, {"label": "y"}]}}}', "several labels: x, y"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_classes(path)


def test_the_command_prints_the_published_pair_beside_ours(tmp_path, tiny_encoder, tiny_checkpoint):
    write_features(tmp_path / "x.npz", features_near(tiny_encoder))
    arguments = ["--features", str(tmp_path / "x.npz"), "--classes", str(activitynet(tmp_path))]
    result = CliRunner().invoke(app, ["study", "zero-shot", *arguments, "--model", str(tiny_checkpoint)])
    assert result.exit_code == 0, (result.output, result.exception)
    for part in (
        "CLIP4Clip, ActivityNet | 51.7",
        "+ EMCL | 52.3",
        "29 videos, 1 without a class",
        "human action of {}",
    ):
        assert part in result.stdout
