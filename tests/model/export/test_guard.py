"""The guard of exports: what ranks as fp32 passes, what does not is refused, kept as a refusal and never used."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from service_support import emcl_command

from model.clip.preprocess import Preprocess
from model.encoder import DEMO_CHECKPOINT, export_store, load_encoder
from model.export.export import export, generated_samples, samples_of
from model.export.guard import SampleFeatures, Samples, Speed, judge
from model.runtime.choose import RuntimeUnavailableError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def has_the_instructions(monkeypatch):
    """As on a processor with VNNI and bf16, so that nothing but the guard refuses."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)


def features(text_TD, frames_RD, pooled_VD) -> SampleFeatures:
    return SampleFeatures(
        text_TD=text_TD, frames_RD=frames_RD, pooled_VD=pooled_VD, speed=Speed(text_ms=1.0, image_ms=1.0)
    )


@pytest.fixture
def made():
    """Samples whose texts each find their own video, and their features."""
    rng = np.random.default_rng(0)
    videos = rng.normal(size=(30, 16)).astype(np.float32)
    texts = videos + 0.3 * rng.normal(size=videos.shape).astype(np.float32)
    frames = [np.zeros((1, 4, 4, 3), np.uint8)] * 30
    listed = Samples(source="made", frames=frames, texts=["t"] * 30, video_of_text_T=np.arange(30))
    return listed, features(texts, videos, videos)


def test_the_guard_passes_what_is_equal_and_refuses_what_turned(made):
    listed, honest = made
    assert judge("onnx-int8", listed, honest, honest).failures == ()
    turned = features(np.roll(honest.text_TD, 1, axis=1), honest.frames_RD, honest.pooled_VD)
    report = judge("onnx-int8", listed, honest, turned)
    assert not report.passed
    assert "cosine of texts" in report.failures[0]
    assert any("ten best" in failure for failure in report.failures)
    assert any("R@1 falls from" in failure for failure in report.failures)
    assert "REFUSED" in report.lines()[-1]


def test_the_guard_sees_a_ranking_that_changed_though_every_cosine_is_high(made):
    listed, honest = made
    rng = np.random.default_rng(1)
    # A large common direction, as features of real CLIPs have it, hides the noise from cosines.
    common = np.zeros(16, np.float32)
    common[0] = 60.0
    before = features(honest.text_TD + common, honest.frames_RD + common, honest.pooled_VD + common)
    noise = rng.normal(size=(30, 16)).astype(np.float32)
    after = features(before.text_TD + noise, before.frames_RD, before.pooled_VD + noise[::-1])
    report = judge("onnx-int8", listed, before, after)
    assert report.text.least > 0.98
    assert [failure for failure in report.failures if "ten best" in failure]


def test_the_guard_refuses_nan(made):
    listed, honest = made
    broken = features(np.full_like(honest.text_TD, np.nan), honest.frames_RD, honest.pooled_VD)
    assert judge("torch-bf16", listed, honest, broken).text.least == -1.0


def test_the_guard_needs_enough_videos_to_rank(made):
    listed, honest = made
    few = dataclasses.replace(listed, frames=listed.frames[:5])
    with pytest.raises(ValueError, match="has 5 videos, the guard needs at least 20"):
        judge("onnx", few, honest, honest)


@pytest.fixture
def outlier_checkpoint(tmp_path):
    """The demo model with a few huge weights that cancel out in fp32, which bytes cannot hold beside the others."""
    from model.checkpoint import load_checkpoint, save_checkpoint

    net = load_checkpoint(DEMO_CHECKPOINT)
    with torch.no_grad():
        for block in net.clip.text_blocks:
            up, down = block.mlp.c_fc, block.mlp.c_proj
            up.weight[:2] = 300.0 * torch.sign(up.weight[0])  # two units that see the same …
            up.bias[:2] = 0.0
            down.weight[:, 1] = -down.weight[:, 0]  # … and undo each other
    return save_checkpoint(net, tmp_path / "outliers")


def test_a_model_that_bytes_cannot_hold_is_refused_and_not_used(outlier_checkpoint):
    encoder = load_encoder(str(outlier_checkpoint), device="cpu")
    store = export_store(str(outlier_checkpoint), encoder.fingerprint)
    report = export(encoder, store, "onnx-int8", generated_samples(40, preprocess=Preprocess.square(64)))
    assert not report.passed, report.lines()
    assert not list(store.folder.glob("*.onnx"))
    assert store.read("onnx-int8").guard == report
    chosen = load_encoder(str(outlier_checkpoint), device="cpu", runtime="auto", precision="auto").runtime
    assert chosen.label == "torch fp32"
    assert "the guard refused it" in chosen.reason
    with pytest.raises(RuntimeUnavailableError, match=r"the guard refused it \(cosine of texts .* --samples"):
        load_encoder(str(outlier_checkpoint), device="cpu", runtime="onnx-int8", precision="auto")


def test_samples_of_ones_own_have_all_their_captions(tmp_path):
    from model.demo.corpus import write_clip
    from model.demo.scene import make_scene

    lines = []
    for number in range(2):
        write_clip(make_scene(0, "test", number), tmp_path / f"{number}.mp4")
        lines.append(json.dumps({"video": f"{number}.mp4", "captions": ["one", "two"][: number + 1]}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    sampling = load_encoder("demo", device="cpu").config.sampling
    found = samples_of(tmp_path, 9, preprocess=Preprocess.square(64), sampling=sampling)
    assert found.texts == ["one", "one", "two"]
    assert found.video_of_text_T.tolist() == [0, 1, 1]
    assert all(frames.shape[1:] == (64, 64, 3) for frames in found.frames)


def test_the_command_says_what_was_refused_and_fails(outlier_checkpoint, monkeypatch, capsys):
    emcl = emcl_command(monkeypatch, capsys)
    code, out, err = emcl(
        "export", "--model", str(outlier_checkpoint), "--runtime", "onnx-int8", "--sample-videos", "20"
    )
    assert code == 1
    assert "REFUSED: cosine of texts" in out
    assert "is not used for this model" in err
