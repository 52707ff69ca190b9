"""Where CLIP models come from: what a tag implies, what cannot be built, local weights files of every layout."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from import_support import save_archive
from safetensors.torch import save_file
from typer.testing import CliRunner

from model.cli import app
from model.clip import presets
from model.clip.compat import import_open_clip
from model.clip.pretrained import ClipError, create_clip, describe_clip
from model.clip.towers import ClipTowers, build_clip
from model.clip.weights import WeightsError
from model.config import ClipConfig
from model.encoder import load_encoder

PLAIN = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 714, "width": 64, "heads": 2, "layers": 2},
}
TIMM = {
    "embed_dim": 64,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": PLAIN["text_cfg"],
}
OPENAI_SCALARS = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(16),
    "vocab_size": torch.tensor(714),
}


@pytest.fixture(scope="module")
def plain() -> ClipTowers:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_clip(ClipConfig(custom=PLAIN))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def text() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[712, 5, 300, 713, 0], [712, 713, 0, 0, 0], [712, 88, 99, 111, 713]])
    return ids, ids > 0


@pytest.mark.parametrize(
    ("architecture", "tag", "quick_gelu"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32-quickgelu", None, True),
        ("ViT-B-32", None, False),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32", "metaclip_400m", True),
    ],
)
def test_activation_is_the_one_that_the_tag_was_trained_with(architecture, tag, quick_gelu):
    description = describe_clip(ClipConfig(architecture=architecture, pretrained=tag))
    assert description["quick_gelu"] is quick_gelu


def test_two_names_of_the_same_towers_have_one_description():
    named = describe_clip(ClipConfig(architecture="ViT-B-32", pretrained="openai"))
    assert named == describe_clip(ClipConfig(architecture="ViT-B-32-quickgelu", pretrained="openai"))


def test_pixel_statistics_are_those_of_the_tag():
    siglip = describe_clip(ClipConfig(architecture="ViT-B-16-SigLIP", pretrained="webli"))
    assert siglip["preprocess_cfg"] == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    openai = describe_clip(ClipConfig(architecture="ViT-B-32", pretrained="openai"))
    assert openai["preprocess_cfg"].keys() == {"mean", "std"}  # as ever, so that fingerprints stay
    custom = {**PLAIN, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    towers = build_clip(ClipConfig(custom=custom))
    assert (towers.image_mean, towers.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_configuration_is_not_changed_by_building():
    config = ClipConfig(custom=copy.deepcopy(TIMM))
    build_clip(config)
    assert config.custom == TIMM


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "ViT-B-3"}, "unknown CLIP architecture 'ViT-B-3'; did you mean ViT-B-32"),
        ({"architecture": "zzzzzzzz"}, "unknown CLIP architecture 'zzzzzzzz'; open_clip knows 1.., such as ViT-B-32"),
        (
            {"architecture": "ViT-B-32", "pretrained": "opnai"},
            "neither a file nor a tag of ViT-B-32; its tags are: openai",
        ),
        (
            {"architecture": "ViT-B-32-quickgelu", "pretrained": "laion2b_s34b_b79k"},
            "its tags are: openai, .*; that one belongs to ViT-B-32",
        ),
        ({"custom": {"embed_dim": 8}}, "open_clip model dictionary; it lacks text_cfg, vision_cfg"),
        ({"custom": {**PLAIN, "vision_cfg": {"depth": 2}}}, "as CLIP: .*unexpected keyword argument 'depth'"),
    ],
)
def test_what_cannot_be_built_is_explained(config, message):
    with pytest.raises(ClipError, match=message):
        build_clip(ClipConfig(**config))


# -- local weights files


def plain_state(towers: ClipTowers) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in towers.model.state_dict().items()}


def activations(towers: ClipTowers) -> set[str]:
    return {type(module).__name__ for module in towers.modules() if "GELU" in type(module).__name__}


def write(kind: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "torchscript":
        save_archive(state, path)
    elif kind == "training":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "training", "torchscript"])
def test_local_files_load(kind, plain, pixels, tmp_path):
    path = write(kind, plain_state(plain), tmp_path)
    loaded = build_clip(ClipConfig(custom=PLAIN, pretrained=str(path)))
    assert torch.equal(loaded.encode_image(pixels), plain.encode_image(pixels))


@pytest.mark.parametrize("kind", ["state dict", "torchscript"])
def test_openai_layout_means_quick_gelu(kind, plain, pixels, tmp_path):
    path = write(kind, {**plain_state(plain), **OPENAI_SCALARS}, tmp_path)
    config = ClipConfig(custom={**PLAIN, "quick_gelu": False}, pretrained=str(path))
    loaded = build_clip(config)
    assert activations(loaded) == {"QuickGELU"}
    assert loaded.description["quick_gelu"] is True
    assert torch.equal(loaded.encode_image(pixels), plain.encode_image(pixels))
    assert activations(build_clip(config, load_weights=False)) == {"GELU"}


@pytest.mark.parametrize(("named", "warns"), [("tiny", True), ("tiny-quickgelu", False)])
def test_a_file_that_cannot_say_its_activation_is_warned_of(named, warns, plain, tmp_path, monkeypatch, caplog):
    models = {"tiny": {**PLAIN, "quick_gelu": False}, "tiny-quickgelu": PLAIN}
    monkeypatch.setattr(import_open_clip().factory, "_MODEL_CONFIGS", models)
    path = write("safetensors", plain_state(plain), tmp_path)
    build_clip(ClipConfig(architecture=named, pretrained=str(path)))
    assert ("name the model tiny-quickgelu" in caplog.text) is warns


def test_half_precision_files_load_into_float32(plain, tmp_path):
    halves = {name: tensor.half() for name, tensor in plain_state(plain).items()}
    loaded = build_clip(ClipConfig(custom=PLAIN, pretrained=str(write("safetensors", halves, tmp_path))))
    for name, tensor in loaded.model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halves[name].float())


def test_old_layout_loads_into_a_custom_text_model(plain, pixels, text, tmp_path):
    path = write("safetensors", plain_state(plain), tmp_path)
    loaded = build_clip(ClipConfig(custom={**PLAIN, "custom_text": True}, pretrained=str(path)))
    assert torch.equal(loaded.encode_image(pixels), plain.encode_image(pixels))
    torch.testing.assert_close(loaded.encode_text(*text), plain.encode_text(*text), atol=1e-6, rtol=1e-5)


def test_weights_that_do_not_fit_list_why(plain, tmp_path):
    state = plain_state(plain)
    del state["ln_final.weight"]
    state["surplus"] = torch.zeros(1)
    state["visual.proj"] = torch.zeros(64, 47)
    path = write("safetensors", state, tmp_path)
    with pytest.raises(WeightsError) as caught:
        build_clip(ClipConfig(custom=PLAIN, pretrained=str(path)))
    message = str(caught.value)
    assert str(path) in message
    assert "1 missing: ln_final.weight" in message
    assert "1 unexpected: surplus" in message
    assert "1 of another shape: visual.proj (got (64, 47), expected (64, 48))" in message


def test_missing_weights_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt does not exist"):
        build_clip(ClipConfig(custom=PLAIN, pretrained=str(tmp_path / "nowhere.pt")))


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


# What torchvision's own __init__ does when its compiled library belongs to another torch: a submodule comes in, then
# the registration of a fake kernel fails because the operator was never defined.
BROKEN = """
import builtins
builtins.imports = getattr(builtins, "imports", 0) + 1
from torchvision import extension
import torch

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""


def run(folder: Path, torchvision: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where ``import torchvision`` finds the given source."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(torchvision)
    (package / "extension.py").write_text("loaded = True\n")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )


def test_open_clip_imports_on_this_install():
    from model.clip.compat import import_open_clip

    assert import_open_clip().__version__ == "3.3.0"
    assert import_open_clip() is sys.modules["open_clip"]


def test_missing_operators_are_declared_and_the_import_repeated(tmp_path):
    code = """
import builtins, sys
from model.clip import compat
compat._import_torchvision()
import gc, torch
gc.collect()
schema = "torchvision::{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
assert str(torch.ops.torchvision.nms.default._schema) == schema.format("nms")
assert str(torch.ops.torchvision.qnms.default._schema) == schema.format("qnms")
assert builtins.imports == 2, builtins.imports
assert sys.modules["torchvision"].extension is sys.modules["torchvision.extension"]
compat._import_torchvision()
assert builtins.imports == 2, "a second call imports nothing"
"""
    result = run(tmp_path, BROKEN, code)
    assert result.returncode == 0, result.stderr


def test_healthy_torchvision_is_left_alone(tmp_path):
    code = """
import builtins, sys
from model.clip import compat
compat._import_torchvision()
assert builtins.imports == 1
assert compat._declared is None
assert "torch" not in sys.modules, "nothing of torch is needed where nothing is repaired"
"""
    healthy = 'import builtins\nbuiltins.imports = getattr(builtins, "imports", 0) + 1\n'
    result = run(tmp_path, healthy, code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            'raise RuntimeError("operator torchvision::roi_align does not exist")',
            "RuntimeError: operator torchvision::roi",
        ),
        ('raise RuntimeError("CUDA driver is too old")', "RuntimeError: CUDA driver is too old"),
        ('raise ImportError("libjpeg.so.8: cannot open shared object file")', "ImportError: libjpeg.so.8"),
    ],
)
def test_every_other_error_is_passed_on(tmp_path, source, expected):
    result = run(tmp_path, source, "from model.clip import compat; compat.import_open_clip()")
    assert result.returncode == 1
    assert expected in result.stderr
    assert "During handling" not in result.stderr
