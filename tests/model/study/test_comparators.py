"""``emcl study comparators``: same rows for all, training that trains, refusals."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.cli import app
from model.config import EMCLConfig
from model.emcl.em import EMCL
from model.heads.comparators import build_comparator
from model.heads.features import FeaturesError, FeatureSet, write_features
from model.study.comparators import KINDS, Settings, batch_loss, pooled_rows, study

D = 16


def twisted(seed, count=200, prefix="v"):
    """Videos and texts agree in half of the channels, under larger noise in the others, which a layer can learn."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(count, D // 2))
    video, text = (
        np.concatenate([shared + 0.3 * rng.normal(size=shared.shape), 1.5 * rng.normal(size=shared.shape)], axis=1)
        for _ in range(2)
    )
    return FeatureSet(
        kind="pooled",
        arrays={"video": video.astype(np.float32), "text": text.astype(np.float32)},
        video_of_text_T=np.arange(count),
        video_ids=[f"{prefix}{n}" for n in range(count)],
        logit_scale=2.0,
    )


@pytest.fixture(scope="module")
def results():
    settings = Settings(seeds=(0, 1), steps=300, batch=64, learning_rate=3e-3)
    return {result.name: result for result in study(twisted(1), twisted(2, prefix="w"), settings)}


def test_every_correction_is_measured_on_the_same_rows(results):
    assert tuple(results) == KINDS
    video, text = pooled_rows(twisted(2))
    plain = float((torch.argmax(text @ video.T, dim=1) == torch.arange(200)).float().mean() * 100)
    assert results["none"].to_videos == pytest.approx([plain, plain])
    assert (results["none"].size, results["none"].rank, results["none"].parameters) == (0.0, 0.0, 0)
    assert results["emcl reference"].parameters == results["pca"].parameters == 0
    assert results["emcl channel"].size > 0.05


def test_training_a_layer_trains_it(results):
    assert np.mean(results["fc"].to_videos) > results["none"].to_videos[0] + 5
    assert results["fc"].to_videos[0] != results["fc"].to_videos[1], "seeds differ"


def test_strength_zero_is_no_correction():
    features = twisted(1, count=8)
    video, text = pooled_rows(features)
    scale, owner = torch.tensor(2.0), torch.arange(8)
    for config in (EMCLConfig(beta=0.0), EMCLConfig.reference(beta=0.0)):
        found = batch_loss(EMCL(D, config), video, text, scale, owner)
        torch.testing.assert_close(found, batch_loss(build_comparator("none", D), video, text, scale, owner))


def test_refusals():
    with pytest.raises(ValueError, match="200 videos are in both sets, such as v0"):
        study(twisted(1), twisted(2), Settings())
    tokens = FeatureSet(kind="experts", arrays=twisted(1).arrays, video_of_text_T=np.arange(200))
    with pytest.raises(FeaturesError, match="got experts"):
        pooled_rows(tokens)


def test_the_command_prints_one_table(tmp_path):
    for name, seed in (("train", 1), ("test", 2)):
        write_features(tmp_path / f"{name}.npz", twisted(seed, prefix=name))
    arguments = ["--train", str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz"), "--steps", "2"]
    result = CliRunner().invoke(app, ["study", "comparators", *arguments, "--seeds", "0,1"])
    assert result.exit_code == 0, result.output
    assert [line.split(" | ")[0] for line in result.stdout.splitlines() if line.startswith("| ")][1:] == [
        f"| {kind}" for kind in KINDS
    ]
    assert "unknown in the sources" in result.stdout
