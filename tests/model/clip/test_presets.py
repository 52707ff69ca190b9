"""Presets, the list of models, and folders that hold a model for machines without network."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from model.cli import app
from model.clip import presets
from model.clip.compat import import_open_clip
from model.clip.pretrained import ClipError, create_clip, describe_clip
from model.config import ClipConfig
from model.encoder import load_encoder


def test_presets_stand_for_tags_of_open_clip():
    table = {tuple(entry) for entry in import_open_clip().list_pretrained()}
    assert {(preset.architecture, preset.tag) for preset in presets.PRESETS.values()} <= table
    assert presets.resolve("small", None) == ("PE-Core-S-16-384", "meta")
    assert presets.resolve("clip", None) == ("ViT-B-32-quickgelu", "openai")
    assert presets.resolve("ViT-L-14", "openai") == ("ViT-L-14", "openai")
    assert presets.resolve(None, None) == (None, None)
    with pytest.raises(ClipError, match="--model PE-Core-B-16 --pretrained mine"):
        presets.resolve("base", "mine")


@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_size_of_a_download_is_that_of_its_weights(name):
    preset = presets.PRESETS[name]
    with torch.device("meta"):
        model, _ = create_clip(ClipConfig(architecture=preset.architecture), load_weights=False)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert preset.megabytes == pytest.approx(4 * weights / 1e6, abs=1)


def test_the_list_holds_every_model_with_its_own_preprocessing():
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"], catch_exceptions=False).stdout)
    assert [model["preset"] for model in listed[:4]] == ["small", "base", "large", "clip"]
    assert {(model["architecture"], model["tag"]) for model in listed} == {
        tuple(entry) for entry in import_open_clip().list_pretrained()
    }
    small = listed[0]
    assert (small["image_size"], small["resize_mode"], small["interpolation"]) == ([384, 384], "squash", "bilinear")
    assert (small["context_length"], small["licence"], small["recall_at_1"]) == (32, "Apache-2.0", 39.3)
    lines = CliRunner().invoke(app, ["models"], catch_exceptions=False).stdout.splitlines()
    assert len(lines) == len(listed)
    assert "about 349 MB, Apache-2.0, R@1 39.3" in lines[0]


def test_a_folder_is_a_model(tiny_config, tmp_path):
    custom = {**tiny_config.clip.custom, "text_cfg": {**tiny_config.clip.custom["text_cfg"], "vocab_size": 49408}}
    model, description = create_clip(ClipConfig(custom=custom), load_weights=False)
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(model.state_dict(), folder / presets.WEIGHTS_FILE)
    cfg = {key: value for key, value in description.items() if key != "preprocess_cfg"}
    written = {"model_cfg": cfg, "preprocess_cfg": {**description["preprocess_cfg"], "resize_mode": "squash"}}
    (folder / presets.CONFIG_FILE).write_text(json.dumps(written))
    encoder = load_encoder(str(folder), device="cpu")
    assert encoder.preprocess.resize_mode == "squash"
    scale = float(model.logit_scale.detach().exp())
    assert encoder.config.pooling.unit_scale == pytest.approx(scale / encoder.config.pooling.temperature)
    assert load_encoder(str(folder), device="cpu").fingerprint == encoder.fingerprint
    with pytest.raises(ValueError, match="weights of its own"):
        load_encoder(str(folder), pretrained="openai", device="cpu")
    (folder / presets.WEIGHTS_FILE).unlink()
    with pytest.raises(ClipError, match="emcl models fetch"):
        load_encoder(str(folder), device="cpu")


def test_fetching_writes_the_weights_and_all_facts(monkeypatch, tmp_path):
    weights = tmp_path / "cached.safetensors"
    save_file({"anything": torch.zeros(1)}, weights)
    monkeypatch.setattr(presets, "download_weights", lambda *_: str(weights))
    folder = tmp_path / "models" / "small"
    done = CliRunner().invoke(app, ["models", "fetch", "small", "--to", str(folder)], catch_exceptions=False)
    assert "PE-Core-S-16-384 (meta)" in done.stdout
    assert (folder / presets.WEIGHTS_FILE).read_bytes() == weights.read_bytes()
    assert json.loads((folder / presets.CONFIG_FILE).read_text())["facts"]["licence"] == "Apache-2.0"
    named = describe_clip(ClipConfig(architecture="PE-Core-S-16-384", pretrained="meta"))
    assert describe_clip(presets.config_of_folder(folder)) == named
    with pytest.raises(ClipError, match=r"needs a tag.*openai"):
        presets.fetch_model("ViT-L-14", None, folder)


@pytest.mark.slow
def test_pe_core_runs_from_a_fetched_folder(monkeypatch, tmp_path):
    """With random weights of the real shapes: texts and frames go through, from a folder alone."""
    model, _ = create_clip(ClipConfig(architecture="PE-Core-S-16-384"), load_weights=False)
    weights = tmp_path / "cached.safetensors"
    save_file(model.state_dict(), weights)
    monkeypatch.setattr(presets, "download_weights", lambda *_: str(weights))
    presets.fetch_model("small", None, tmp_path / "small")
    encoder = load_encoder(str(tmp_path / "small"), device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (2, 90, 160, 3), dtype=np.uint8)
    features = encoder.encode_videos(encoder.preprocess(frames)[None], np.ones((1, 2), bool))
    assert features.shape == (1, 2, 512)
    assert np.isfinite(features).all()
    assert encoder.encode_texts(["a white cockatoo", "a dog"]).shape == (2, 512)
