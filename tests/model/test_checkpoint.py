"""Checkpoints: what is saved comes back, whatever the way; damaged and foreign files are refused with a reason."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import checkpoint as checkpoint_module
from model.checkpoint import CheckpointError, fingerprint, former_fingerprints, load_checkpoint, save_checkpoint
from model.clip.preprocess import Preprocess
from model.clip.tokenizer import build_tokenizer
from model.config import ClipConfig, EMCLConfig, PoolingConfig, SamplingConfig, TemporalConfig, TokenizerConfig
from model.net import EMCLNet, build_net


def seeded_net(config, seed: int = 0) -> EMCLNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_net(config).eval()


@pytest.fixture
def net(tiny_config) -> EMCLNet:
    return seeded_net(tiny_config)


@pytest.fixture
def saved(net, tmp_path) -> Path:
    return save_checkpoint(net, tmp_path / "model.safetensors", metadata={"steps": 7})


@torch.inference_mode()
def outputs(net: EMCLNet) -> list[torch.Tensor]:
    """Everything a net computes, of fixed inputs."""
    ids, mask = build_tokenizer(net.config.tokenizer, net.config.clip)(["a red ball", "two dogs in a park"])
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    frame_mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    text, video = net.encode_text(ids, mask), net.encode_video(frames, frame_mask)
    candidates = video[None].expand(2, -1, -1, -1), frame_mask[None].expand(2, -1, -1)
    return [text, video, net.score_videos(text, *candidates).scores_QN]


# -- what is saved comes back


def test_another_average_of_frames_is_another_model(tiny_config):
    """It changes what an index stores."""
    net = build_net(tiny_config)
    own = fingerprint(net)
    net.config = tiny_config.model_copy(update={"frame_average": "unit-mean"})
    assert fingerprint(net) != own
    features, mask = torch.randn(1, 2, 32), torch.ones(1, 2, dtype=torch.bool)
    assert float(net.pool(features, mask).norm()) == pytest.approx(1, abs=1e-5)


def test_layout(saved):
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model.json", "model.safetensors"]
    description = json.loads(saved.with_suffix(".json").read_text())
    assert description["format_version"] == 1
    assert description["metadata"] == {"steps": 7}
    assert description["config"]["temporal"]["kind"] == "transformer"
    assert "emcl.state" in load_file(saved), "the EMCL state is part of the model"


def test_a_loaded_net_computes_the_same(net, saved):
    loaded = load_checkpoint(saved)
    assert not loaded.training
    for expected, got in zip(outputs(net), outputs(loaded), strict=True):
        assert torch.equal(got, expected)
    assert fingerprint(loaded) == fingerprint(net) == json.loads(saved.with_suffix(".json").read_text())["fingerprint"]


def test_emcl_state_is_restored(net, tmp_path):
    net.emcl.state.add_(0.25)
    loaded = load_checkpoint(save_checkpoint(net, tmp_path / "model"))
    assert torch.equal(loaded.emcl.state, net.emcl.state)


@pytest.mark.parametrize("kind", ["mean", "lstm"])
def test_every_temporal_kind_comes_back(kind, tiny_config, tmp_path):
    net = seeded_net(tiny_config.model_copy(update={"temporal": TemporalConfig(kind=kind)}))
    loaded = load_checkpoint(save_checkpoint(net, tmp_path / "model"))
    for expected, got in zip(outputs(net), outputs(loaded), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["model", "model.safetensors", "model.json", "model.v2"])
def test_either_file_names_the_checkpoint(name, net, tmp_path):
    path = save_checkpoint(net, tmp_path / "deeper" / name)
    assert path.suffix == ".safetensors"
    assert fingerprint(load_checkpoint(tmp_path / "deeper" / name)) == fingerprint(net)


def test_a_checkpoint_needs_nothing_of_where_its_weights_came_from(net, tiny_config, tmp_path):
    """Weights from a file, by whatever name: the checkpoint loads without it and is the same model."""
    weights = tmp_path / "clip.safetensors"
    save_file({name: value.clone() for name, value in net.clip.model.state_dict().items()}, weights)
    clip = ClipConfig(architecture="RN50", custom=tiny_config.clip.custom, pretrained=str(weights))
    mean = TemporalConfig(kind="mean")
    from_file = build_net(tiny_config.model_copy(update={"clip": clip, "temporal": mean}))
    path = save_checkpoint(from_file, tmp_path / "model")
    weights.unlink()
    assert fingerprint(load_checkpoint(path)) == fingerprint(from_file)
    assert str(weights) not in path.with_suffix(".json").read_text()


# -- fp16 on disk, precision in use


def test_fp16_file_is_about_half_and_close(net, saved, tmp_path):
    half = save_checkpoint(net, tmp_path / "half", dtype="fp16")
    assert half.stat().st_size < 0.7 * saved.stat().st_size
    for expected, got in zip(outputs(net), outputs(load_checkpoint(half)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)
    stored = load_file(half)
    assert {name for name, value in stored.items() if value.dtype != torch.float16} >= {"emcl.state"}
    assert all(value.ndim < 2 or name == "emcl.state" for name, value in stored.items() if value.dtype == torch.float32)


def test_fingerprint_is_that_of_the_stored_weights_however_loaded(net, tmp_path):
    half = save_checkpoint(net, tmp_path / "half", dtype="fp16")
    loaded = load_checkpoint(half)
    assert fingerprint(loaded) != fingerprint(net), "rounding makes another model"
    assert fingerprint(loaded) == json.loads(half.with_suffix(".json").read_text())["fingerprint"]
    for precision in ("bf16", "fp16"):
        assert fingerprint(load_checkpoint(half, precision=precision)) == fingerprint(loaded)
    again = save_checkpoint(loaded, tmp_path / "again", dtype="fp32")
    assert fingerprint(load_checkpoint(again)) == fingerprint(loaded)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_of_a_built_net_leaves_its_fingerprint(precision, tiny_config, net):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert fingerprint(build_net(tiny_config, precision=precision)) == fingerprint(net)


def test_loading_in_low_precision_converts_the_towers_only(saved):
    loaded = load_checkpoint(saved, precision="bf16")
    assert loaded.clip.precision == "bf16"
    assert {value.dtype for value in loaded.temporal.parameters()} == {torch.float32}
    assert loaded.emcl.state.dtype == torch.float32


# -- what a fingerprint sees


def changed(config, **parts):
    return config.model_copy(update=parts)


def test_fingerprint_sees_every_tensor(net):
    before = fingerprint(net)
    for name, tensor in net.state_dict().items():
        original = tensor.clone()
        tensor.view(-1)[-1] += 0.5
        assert fingerprint(net) != before, name
        tensor.copy_(original)
    assert fingerprint(net) == before


def test_fingerprint_sees_what_changes_features(net, tiny_config):
    custom = {**tiny_config.clip.custom, "quick_gelu": False}
    for config in (
        changed(tiny_config, clip=ClipConfig(custom=custom)),
        changed(tiny_config, tokenizer=TokenizerConfig(merges=200, max_words=20)),
        changed(tiny_config, temporal=TemporalConfig(kind="mean")),
    ):
        assert fingerprint(seeded_net(config)) != fingerprint(net)


def with_preprocessing(config, **cfg):
    custom = {**config.clip.custom, "preprocess_cfg": cfg}
    return config.model_copy(update={"clip": config.clip.model_copy(update={"custom": custom})})


def test_fingerprint_sees_the_preprocessing_and_knows_what_it_was_without(tiny_config):
    plain = seeded_net(with_preprocessing(tiny_config, mean=[0.5] * 3, std=[0.5] * 3))
    squashed = seeded_net(with_preprocessing(tiny_config, mean=[0.5] * 3, std=[0.5] * 3, resize_mode="squash"))
    assert fingerprint(squashed) != fingerprint(plain)
    assert fingerprint(plain) in former_fingerprints(squashed)
    assert fingerprint(squashed) not in former_fingerprints(squashed)
    assert former_fingerprints(plain) == frozenset()


def test_a_checkpoint_keeps_its_preprocessing(tiny_config, tmp_path):
    cfg = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "longest", "interpolation": "bilinear", "fill_color": 9}
    net = seeded_net(with_preprocessing(tiny_config, **cfg))
    loaded = load_checkpoint(save_checkpoint(net, tmp_path / "net"))
    assert loaded.clip.preprocess == Preprocess.square(32, resize_mode="longest", interpolation="bilinear", fill=9)
    assert fingerprint(loaded) == fingerprint(net)


def test_fingerprint_ignores_what_can_be_tuned_under_an_index(net, tiny_config):
    config = changed(
        tiny_config,
        name="renamed",
        emcl=EMCLConfig(beta=0.3, iterations=3, sigma=0.5),
        pooling=PoolingConfig(temperature=1.0),
        sampling=SamplingConfig(sample_fps=4.0, max_frames=8),
    )
    assert fingerprint(seeded_net(config)) == fingerprint(net)


# -- what is refused


def damage(path: Path, **entries) -> None:
    state = load_file(path)
    for name, value in entries.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    save_file(state, path)


def test_strict_loading_lists_what_is_wrong(saved):
    damage(saved, emcl__state=None, extra=torch.zeros(2), temporal__positions__weight=torch.zeros(32, 5))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    message = str(caught.value)
    assert str(saved) in message
    assert "1 missing: emcl.state" in message
    assert "1 unexpected: extra" in message
    assert "1 of another shape: temporal.positions.weight (got (32, 5), expected (32, 32))" in message


def test_a_changed_value_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[-9] ^= 0x40
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="a file is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_truncated_weights_are_refused(saved, keep):
    os.truncate(saved, int(saved.stat().st_size * keep) if isinstance(keep, float) else keep)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as a weights file"):
        load_checkpoint(saved)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_missing_file_is_named(saved, suffix):
    saved.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=rf"model\{suffix} does not exist"):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_damaged_description_is_named(saved, content):
    saved.with_suffix(".json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has checkpoint format 2, this program reads 1"),
        ({"format_version": None}, "has checkpoint format None"),
        ({"surplus": 1}, "surplus: Extra inputs are not permitted"),
        ({"fingerprint": "abc"}, "fingerprint: String should match"),
        ({"config": {"emcl": {"bases": 3}}}, r"config\.emcl\.bases: Extra inputs are not permitted"),
        ({"fingerprint": "0" * 64}, "describes 000000000000: a file is damaged, or saving was interrupted"),
    ],
)
def test_wrong_description_is_explained(saved, changes, message):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_description_of_another_model_is_refused(saved, tiny_config, tmp_path):
    other = save_checkpoint(seeded_net(tiny_config, seed=5), tmp_path / "other")
    other.with_suffix(".json").replace(saved.with_suffix(".json"))
    with pytest.raises(CheckpointError, match="the two are of different checkpoints"):
        load_checkpoint(saved)


def test_tuned_settings_may_be_edited(saved):
    path = saved.with_suffix(".json")
    description = json.loads(path.read_text())
    description["config"]["emcl"]["beta"] = 0.3
    path.write_text(json.dumps(description))
    assert load_checkpoint(saved).config.emcl.beta == 0.3


# -- saving


def test_saving_twice_replaces_both_files(net, saved, tiny_config):
    other = seeded_net(tiny_config, seed=5)
    save_checkpoint(other, saved)
    assert fingerprint(load_checkpoint(saved)) == fingerprint(other) != fingerprint(net)


def test_a_failed_save_leaves_the_old_checkpoint(net, saved, tiny_config, monkeypatch):
    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "sync_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(seeded_net(tiny_config, seed=5), saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model.json", "model.safetensors"]
    assert fingerprint(load_checkpoint(saved)) == fingerprint(net)


def test_what_cannot_be_stored_is_refused_before_anything_is_written(net, tiny_config, tmp_path):
    with torch.no_grad():
        net.temporal.positions.weight[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"temporal\.positions\.weight holds 1e\+05, more than fp16 can"):
        save_checkpoint(net, tmp_path / "model", dtype="fp16")
    with torch.no_grad():
        net.temporal.positions.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"temporal\.positions\.weight holds values that are not finite"):
        save_checkpoint(net, tmp_path / "model")
    with pytest.raises(CheckpointError, match="converted to bf16, which lost digits"):
        save_checkpoint(build_net(tiny_config, precision="bf16"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
