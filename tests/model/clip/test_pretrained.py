"""Where CLIP models come from: what a tag implies, what cannot be built, local weights files of every layout."""

import copy
from pathlib import Path

import pytest
import torch
from import_support import save_archive
from safetensors.torch import save_file

from model.clip.compat import import_open_clip
from model.clip.pretrained import ClipError, describe_clip
from model.clip.towers import ClipTowers, build_clip
from model.clip.weights import WeightsError
from model.config import ClipConfig

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
