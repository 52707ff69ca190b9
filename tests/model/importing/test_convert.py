"""Checkpoints of others: every known form gives its own features, and the report says what was chosen."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from import_support import SIZES, PlainClip4Clip, convert, make_clip4clip, save, save_archive
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from model.checkpoint import load_checkpoint
from model.config import EMCLConfig
from model.emcl.em import EMCL
from model.importing.convert import ImportingError


@pytest.fixture(params=["meanP", "seqLSTM", "seqTransf"])
def clip4clip(request) -> PlainClip4Clip:
    return make_clip4clip(request.param)


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(4)
    ids = torch.randint(1, 58, (3, 8), generator=g)
    lengths = torch.tensor([8, 5, 3])
    ids[torch.arange(3), lengths - 1] = 59
    words = torch.arange(8) < lengths[:, None]
    frames = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    video = torch.randn(3, 6, 3, 32, 32, generator=g)
    return {"ids": ids * words, "words": words, "video": video, "frames": frames}


@torch.no_grad()
def assert_same_features(net, plain: nn.Module, inputs, tolerance: float = 1e-4) -> None:
    clip = getattr(plain, "clip", plain)
    text = net.encode_text(inputs["ids"], inputs["words"])
    torch.testing.assert_close(text, clip.encode_text(inputs["ids"]), atol=tolerance, rtol=tolerance)
    features = net.encode_video(inputs["video"], inputs["frames"])[inputs["frames"]]
    if clip is plain:
        expected = clip.visual(inputs["video"][inputs["frames"]])
    else:
        expected = plain.encode_video(inputs["video"], inputs["frames"])[inputs["frames"]]
    assert expected.std() > 0.1  # large enough that the tolerance means something
    torch.testing.assert_close(features, expected, atol=tolerance, rtol=tolerance)


# -- the kinds


@pytest.fixture
def emclnet_arrays(golden) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in golden("emclnet_forward").items() if key != "meta"}


@pytest.fixture
def emclnet_file(emclnet_arrays, tmp_path) -> Path:
    names = [name for name in emclnet_arrays if name.startswith("state/")]
    return save({name.removeprefix("state/"): emclnet_arrays[name] for name in names}, tmp_path)


@torch.no_grad()
def test_emclnet_gives_the_golden_features_and_logits(emclnet_file, emclnet_arrays):
    net, report = convert(
        emclnet_file, kind="emcl-net", max_words=12, max_frames=12, vision_head_width=32, text_head_width=32
    )
    assert net.config.emcl == EMCLConfig.reference()
    assert (net.config.pooling.mask, net.config.pooling.temperature) == ("after", 3.0)
    assert (report.unused, report.unmatched, report.unfilled) == ([], [], [])
    assert net.emcl.state.shape == (1, 32)  # ours: no released file holds one
    mask = emclnet_arrays["video_mask"].bool()
    text = net.encode_text(emclnet_arrays["text_ids"].long(), emclnet_arrays["text_mask"].bool())
    features = net.encode_video(emclnet_arrays["video"], mask)
    np.testing.assert_allclose(text, emclnet_arrays["cls"], atol=1e-4)
    np.testing.assert_allclose(features[mask], emclnet_arrays["video_feats"][mask], atol=1e-4)
    net.emcl = EMCL(net.embed_dim, EMCLConfig.reference(num_bases=8)).eval()
    net.emcl.state.copy_(emclnet_arrays["M_in"])
    logits = net.score_matrix(text, features, mask)
    np.testing.assert_allclose(logits, emclnet_arrays["t2v_logits_eval"], atol=1e-5)


def test_clip4clip_gives_its_own_features(clip4clip, inputs, tmp_path):
    net, report = convert(save(clip4clip.state_dict(), tmp_path), kind="clip4clip")
    kinds = {"meanP": "mean", "seqLSTM": "lstm", "seqTransf": "transformer"}
    assert net.config.temporal.kind == kinds[clip4clip.head]
    assert net.config.emcl == EMCLConfig()
    assert report.unused == (["frame_position_embeddings.weight"] if clip4clip.head == "seqLSTM" else [])
    assert_same_features(net, clip4clip, inputs)
    assert net.config.frame_average == "unit-mean"
    features, mask = torch.randn(2, 3, net.embed_dim), torch.tensor([[True, True, True], [True, False, False]])
    unit = F.normalize(features, dim=-1)
    expected = torch.stack([unit[0].mean(dim=0), unit[1, 0]])
    torch.testing.assert_close(net.pool(features, mask), F.normalize(expected, dim=-1))


@pytest.mark.parametrize("form", ["state dict", "safetensors", "archive"])
def test_clip_in_every_form(form, inputs, tmp_path):
    plain = make_clip4clip("meanP").clip
    markers = {"input_resolution": 32, "context_length": 20, "vocab_size": 60}
    state = {**plain.state_dict(), **{name: torch.tensor(value) for name, value in markers.items()}}
    source = tmp_path / ("ViT.safetensors" if form == "safetensors" else "ViT.pt")
    save_archive(state, source) if form == "archive" else save(state, tmp_path, source.name)
    net, report = convert(source)
    assert (report.kind, net.config.temporal.kind, report.unused) == ("clip", "mean", sorted(markers))
    assert_same_features(net, plain, inputs)


@torch.no_grad()
def test_resnet_clip(tmp_path):
    from model.clip.towers import build_clip
    from model.config import ClipConfig

    text = {"context_length": 20, "vocab_size": 60, "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 4, "patch_size": None}
    towers = build_clip(
        ClipConfig(custom={"embed_dim": 64, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text})
    )
    net, _ = convert(save(towers.model.state_dict(), tmp_path))
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net.clip.encode_image(pixels), towers.encode_image(pixels))
    assert net.config.clip.custom["vision_cfg"]["layers"] == [1, 2, 1, 1]


# -- what surrounds the tensors


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 4},
        lambda state: {"model_state_dict": state, "loss": 0.5},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"module.model.{name}": value for name, value in state.items()},
    ],
    ids=["state_dict", "model_state_dict", "model and module", "module.model"],
)
def test_wrappers_and_prefixes_come_off(wrap, tmp_path):
    state = make_clip4clip("seqTransf").state_dict()
    _, plain = convert(save(state, tmp_path), kind="clip4clip")
    _, wrapped = convert(save(wrap(state), tmp_path, "wrapped.pt"), kind="clip4clip")
    assert wrapped.fingerprint == plain.fingerprint


def test_half_precision_is_stored_as_float32(inputs, tmp_path):
    plain = make_clip4clip("seqTransf")
    halves = {name: value.half() if value.ndim > 1 else value for name, value in plain.state_dict().items()}
    net, report = convert(save(halves, tmp_path), kind="clip4clip")
    assert {tensor.dtype for tensor in load_file(report.path).values()} == {torch.float32}
    plain.load_state_dict(halves)
    assert_same_features(net, plain, inputs)


def test_report_and_metadata_say_what_was_chosen(tmp_path):
    source = save(make_clip4clip("seqTransf").state_dict(), tmp_path)
    _, report = convert(source, kind="emcl-net")
    text = report.text()
    for part in (
        "emcl-net",
        "width 128, 2 heads, 20 positions",
        "transformer of 2 layers",
        "reference mode, K 32",
        "sigma 1, beta 3",
        "masked after",
        "8 words, 6 frames",
        "note: its vocabulary has 60",
    ):
        assert part in text, part
    imported = json.loads(report.path.with_suffix(".json").read_text())["metadata"]["imported"]
    assert imported["file"] == source.name
    assert imported["kind"] == "emcl-net"
    assert re.fullmatch("[0-9a-f]{64}", imported["sha256"])


@pytest.mark.parametrize(
    ("kind", "emcl", "mode", "mask"),
    [
        ("emcl-net", "auto", "reference", "after"),
        ("clip4clip", "auto", "channel", "before"),
        ("emcl-net", "channel", "channel", "before"),
        ("clip4clip", "reference", "reference", "after"),
    ],
)
def test_mode_of_emcl_and_its_rules_come_with_the_kind_or_as_asked(kind, emcl, mode, mask, tmp_path):
    net, _ = convert(save(make_clip4clip("meanP").state_dict(), tmp_path), kind=kind, emcl=emcl)
    assert (net.config.emcl.mode, net.config.pooling.mask) == (mode, mask)


def test_what_the_docs_let_people_change_in_the_description_loads(tmp_path):
    _, report = convert(save(make_clip4clip("seqTransf").state_dict(), tmp_path), kind="emcl-net")
    description = json.loads((file := report.path.with_suffix(".json")).read_text())
    description["config"]["emcl"].update(beta=1.5, sigma=0.5, iterations=5)
    description["config"]["pooling"].update(mask="before", temperature=2.0)
    description["config"]["sampling"].update(max_frames=8, sample_fps=2.0)
    file.write_text(json.dumps(description))
    assert load_checkpoint(report.path).config.emcl.beta == 1.5


def test_the_activation_of_plain_clip_is_not_guessed_in_silence(tmp_path):
    source = save(make_clip4clip("meanP").clip.state_dict(), tmp_path)
    assert any("--activation gelu" in note for note in convert(source)[1].notes)
    net, report = convert(source, activation="gelu")
    assert not any("activation" in note for note in report.notes)
    assert net.config.clip.custom["quick_gelu"] is False


@pytest.mark.parametrize(
    ("vision", "text", "expected"), [(1280, 1024, (80, 64)), (768, 512, (64, 64)), (96, 96, (64, 64))]
)
def test_head_widths_are_those_of_the_known_architecture(vision, text, expected):
    from model.importing.convert import named_heads

    patch, layers, words, dim = (14, 32, 24, 1024) if vision == 1280 else (32, 12, 12, 512)
    sizes = {"layers": layers, "width": vision, "patch_size": patch}
    assert named_heads(dim, sizes, {"layers": words, "width": text}) == expected


# -- nothing is lost in silence


def test_leftovers_of_the_cross_encoder_are_harmless_beside_a_temporal_head(tmp_path):
    cross = {"cross.pooler.dense.weight": torch.ones(2, 2), "similarity_dense.bias": torch.ones(1)}
    positions = {"cross.embeddings.position_ids": torch.arange(3)}
    state = {**make_clip4clip("seqTransf").state_dict(), **cross, **positions}
    _, report = convert(save(state, tmp_path))  # auto: only CLIP4Clip has a cross encoder
    assert (report.kind, report.unused) == ("clip4clip", sorted([*cross, *positions]))
    alone = save({**make_clip4clip("meanP").state_dict(), **cross}, tmp_path)
    with pytest.raises(ImportingError, match=r"2 of its tensors .*cross\.pooler.*similarity_dense.*tightTransf"):
        convert(alone)
    assert convert(alone, allow_unmatched=True)[1].unmatched == sorted(cross)


def test_command(tmp_path):
    from model.cli import app

    source, output = save(make_clip4clip("seqLSTM").state_dict(), tmp_path), tmp_path / "mine.safetensors"
    words = ["import-checkpoint", str(source), "--output", str(output), "--kind", "clip4clip", "--max-words", "8"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "LSTM" in result.output
    assert load_checkpoint(output).config.sampling.max_frames == 12


def test_imported_model_searches(tmp_path, monkeypatch):
    """With CLIP's whole vocabulary, the file is as good as a model of our own: texts and videos in, scores out."""
    from model.encoder import load_encoder

    monkeypatch.setitem(SIZES, "vocabulary", 49408)
    report = convert(save(make_clip4clip("seqTransf").state_dict(), tmp_path), kind="emcl-net")[1]
    assert report.notes == []
    encoder = load_encoder(str(report.path), device="cpu")
    text = encoder.encode_texts(["a dog runs", "rain"])
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 32, 32, 3), dtype=np.uint8)
    mask = np.arange(6) < np.array([[6], [2], [4]])
    features = encoder.encode_videos(frames, mask)
    scores = encoder.score_videos(text, np.stack([features] * 2), np.stack([mask] * 2)).scores_QN
    assert scores.shape == (2, 3)
    assert np.isfinite(scores).all()
    assert torch.isfinite(F.normalize(torch.from_numpy(text), dim=-1)).all()
