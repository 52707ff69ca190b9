"""The fastest runtime of each tower: measured once on a processor, kept, used by auto, and looked for at first use."""

import fcntl
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model.clip.preprocess import Preprocess
from model.encoder import load_encoder
from model.export import fastest as module
from model.export.export import export, generated_samples
from model.export.fastest import MeasuringError, NamedModel, at_first_use, find_fastest
from model.export.guard import SampleFeatures
from model.runtime.choose import processor
from model.runtime.store import Fastest, Speed

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = ["a red circle", "a small blue star moves to the left, then up, in front of a striped green wall", "a", ""]


@pytest.fixture(autouse=True)
def has_the_instructions(monkeypatch):
    """As on a processor with VNNI and bf16: what is tested is not the speed, and few bytes saturate in these models."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)


@pytest.fixture(scope="module")
def samples():
    return generated_samples(24, preprocess=Preprocess.square(64))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, samples):
    """The demo model with everything made and measured; the folder, and what was said."""
    folder = tmp_path_factory.mktemp("exports")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
        found = find_fastest(demo(folder), said.append, lambda _: samples)
    return folder, found, said


def demo(folder: Path) -> NamedModel:
    return NamedModel(model="demo", pretrained=None, exports=folder)


def auto(folder: Path):
    return demo(folder).load("auto", "auto")


def test_all_that_can_run_is_made_judged_and_measured(measured):
    _, found, said = measured
    assert said == ["onnx-int8: passed the guard", "torch-bf16: passed the guard"]
    assert found.measured.keys() == {"torch", "torch-bf16", "onnx-int8"}
    assert all(speed.text_ms > 0 and speed.image_ms > 0 for speed in found.measured.values())
    for tower, milliseconds in (("text", "text_ms"), ("image", "image_ms")):
        times = {kind: getattr(speed, milliseconds) for kind, speed in found.measured.items()}
        if not found.failures and found.fastest["text"] != "torch-bf16":  # which may stand for a mixture with fp32
            assert times[found.fastest[tower]] <= module.NOT_SLOWER * min(times.values())
    assert found.lines()[-1].startswith("fastest: ")


def kept(folder: Path, fastest) -> Fastest:
    """Let ``fastest`` be what was measured."""
    store = demo(folder).store(load_encoder("demo", device="cpu").fingerprint)
    speed = Speed(text_ms=1.0, image_ms=1.0)
    found = Fastest(
        fingerprint=store.fingerprint,
        processor=processor(),
        created="2026-01-01",
        measured=dict.fromkeys(fastest.values(), speed),
        fastest=fastest,
    )
    store.publish_fastest(found)
    return found


@pytest.mark.parametrize(
    ("fastest", "label"),
    [
        ({"text": "onnx-int8", "image": "torch-bf16"}, "onnx int8 for texts, torch bf16 for frames"),
        ({"text": "torch", "image": "onnx-int8"}, "torch fp32 for texts, onnx int8 for frames"),
        ({"text": "onnx-int8", "image": "onnx-int8"}, "onnx int8"),
    ],
)
def test_each_tower_is_computed_by_its_own_runtime(measured, samples, fastest, label):
    folder, *_ = measured
    kept(folder, fastest)
    both = auto(folder)
    assert both.runtime.label == label
    alone = {
        "torch": lambda: demo(folder).load("torch", "fp32"),
        "torch-bf16": lambda: demo(folder).load("torch", "bf16"),
        "onnx-int8": lambda: demo(folder).load("onnx-int8", "auto"),
    }
    by_text, by_image = alone[fastest["text"]](), alone[fastest["image"]]()
    np.testing.assert_array_equal(both.encode_texts(TEXTS), by_text.encode_texts(TEXTS))
    frames = np.stack(samples.frames[:3])
    mask = np.ones(frames.shape[:2], bool)
    np.testing.assert_array_equal(both.encode_videos(frames, mask), by_image.encode_videos(frames, mask))
    assert both.fingerprint == load_encoder("demo", device="cpu").fingerprint


def test_a_measurement_belongs_to_a_processor_and_ends_with_another_export(measured, samples, monkeypatch):
    folder, *_ = measured
    kept(folder, {"text": "torch", "image": "torch"})
    assert auto(folder).runtime.label == "torch fp32"
    with monkeypatch.context() as other:
        other.setattr("model.runtime.install.processor", lambda: "another processor")
        assert auto(folder).runtime.label == "onnx int8"  # the order of preference, without a measurement
    encoder = load_encoder("demo", device="cpu")
    export(encoder, demo(folder).store(encoder.fingerprint), "torch-bf16", samples)
    assert not list(folder.glob("*-fastest-*.json"))


def test_a_damaged_measurement_counts_as_none(measured):
    folder, *_ = measured
    kept(folder, {"text": "torch", "image": "torch"})
    (path,) = folder.glob("*-fastest-*.json")
    for damage in ("{", '{"format": 9}', path.read_text().replace('"text"', '"txt"')):
        path.write_text(damage)
        assert auto(folder).runtime.label == "onnx int8"


# -- which is the best


def features(samples, *, text_ms, image_ms, seed=0, noise=0.0) -> SampleFeatures:
    """Features that find their own scenes, with ``noise`` on top."""
    random = np.random.default_rng(seed)
    rows = np.linalg.qr(np.random.default_rng(9).normal(size=(32, 32)))[0][: len(samples.frames)].astype(np.float32)
    rows = rows + noise * random.normal(size=rows.shape).astype(np.float32)
    return SampleFeatures(text_TD=rows, frames_RD=rows, pooled_VD=rows, speed=Speed(text_ms=text_ms, image_ms=image_ms))


def best(samples, **found):
    return module._best({kind.replace("_", "-"): item for kind, item in found.items()}, found["torch"], samples)


def test_the_fastest_is_chosen_for_each_tower(samples):
    plain = features(samples, text_ms=30, image_ms=80)
    choice, failures = best(
        samples,
        torch=plain,
        torch_bf16=features(samples, text_ms=16, image_ms=17),
        onnx_int8=features(samples, text_ms=8, image_ms=24),
    )
    assert (choice, failures) == ({"text": "onnx-int8", "image": "torch-bf16"}, ())


def test_less_rounding_wins_where_the_gain_is_small(samples):
    plain = features(samples, text_ms=10.0, image_ms=10.0)
    choice, _ = best(samples, torch=plain, onnx_int8=features(samples, text_ms=9.5, image_ms=5.0))
    assert choice == {"text": "torch", "image": "onnx-int8"}


def test_one_precision_of_pytorch_serves_both_towers(samples):
    plain = features(samples, text_ms=10.0, image_ms=10.0)
    choice, _ = best(samples, torch=plain, torch_bf16=features(samples, text_ms=12.0, image_ms=5.0))
    assert choice == {"text": "torch-bf16", "image": "torch-bf16"}


def test_two_that_do_not_go_together_give_way_to_one(samples):
    plain = features(samples, text_ms=30, image_ms=80)
    bytes_ = features(samples, text_ms=8, image_ms=19)
    foreign = np.roll(bytes_.text_TD, 7, axis=0)
    choice, failures = best(
        samples,
        torch=plain,
        torch_bf16=features(samples, text_ms=16, image_ms=17),
        onnx_int8=replace(bytes_, text_TD=foreign),
    )
    assert choice == {"text": "onnx-int8", "image": "onnx-int8"}
    assert any("cosine of texts" in failure for failure in failures)


# -- at first use


def first_use(folder, encoder, *, wish="auto", precision="auto", frames_ahead=0):
    said: list[str] = []
    found = at_first_use(
        demo(folder), encoder, wish=wish, precision=precision, say=said.append, frames_ahead=lambda: frames_ahead
    )
    return found, said


@pytest.fixture(autouse=True)
def small_models_are_worth_it(monkeypatch):
    monkeypatch.setattr(module, "WORTH_MS", 0.0)


@pytest.fixture
def plain():
    return demo(Path("nowhere")).load("torch", "fp32")


@pytest.mark.parametrize("asked", [{"wish": "torch"}, {"precision": "fp32"}])
def test_nothing_is_measured_where_a_runtime_or_precision_was_requested(plain, tmp_path, asked):
    found, said = first_use(tmp_path / "exports", plain, **asked)
    assert (found, said) == (plain, [])
    assert not (tmp_path / "exports").exists()


def test_a_model_that_is_fast_anyway_is_left_as_it_is(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH_MS", 1e9)
    assert first_use(tmp_path, plain) == (plain, [])


def test_the_first_use_measures_and_the_second_does_not(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE_SECONDS", 1e9)
    found, said = first_use(tmp_path, plain)
    assert len(said) == 1
    assert said[0].startswith("measuring which runtime is the fastest for this model, once (about ")
    assert found.runtime == auto(tmp_path).runtime
    assert first_use(tmp_path, found) == (found, [])


def test_a_long_measurement_is_made_in_the_background(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE_SECONDS", 0.0)
    found, said = first_use(tmp_path, plain, frames_ahead=1)
    assert found is plain
    assert "in the background" in said[0]
    (log,) = tmp_path.glob("*-fastest.log")
    assert str(log) in said[0]
    until = time.monotonic() + 120
    while not list(tmp_path.glob("*-fastest-*.json")):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)


def test_a_long_measurement_is_made_first_where_it_pays(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE_SECONDS", 0.0)
    _, said = first_use(tmp_path, plain, frames_ahead=10**9)
    assert "background" not in said[0]
    assert list(tmp_path.glob("*-fastest-*.json"))


def test_a_measurement_that_fails_is_reported_and_not_fatal(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE_SECONDS", 1e9)
    taken = tmp_path / "exports"
    taken.write_text("a file where the folder should be")
    found, said = first_use(taken, plain)
    assert found is plain
    assert said[-1].startswith("the fastest runtime was not measured: ")


def test_two_processes_do_not_measure_at_once(tmp_path, samples):
    encoder = load_encoder("demo", device="cpu")
    with (tmp_path / f"{encoder.fingerprint[:16]}-fastest.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MeasuringError, match="another process measures"):
            find_fastest(demo(tmp_path), print, lambda _: samples)


def test_indexing_uses_what_it_found(tmp_path, monkeypatch):
    from indexer.cli import app
    from model.demo.corpus import write_clip
    from model.demo.scene import make_scene

    monkeypatch.setenv("EMCL_RUNTIME", "auto")
    monkeypatch.setattr(module, "AT_ONCE_SECONDS", 1e9)
    write_clip(make_scene(0, "test", 0), tmp_path / "clip.mp4")
    build = ["build", str(tmp_path / "clip.mp4"), "--store", str(tmp_path / "store"), "--model", "demo"]
    build += ["--exports", str(tmp_path / "exports"), "--device", "cpu"]
    outcome = CliRunner().invoke(app, build)
    assert outcome.exit_code == 0, outcome.output
    assert "measuring which runtime is the fastest" in outcome.output
    assert "the fastest measured on this processor that the guard passed" in outcome.output
    monkeypatch.setenv("EMCL_RUNTIME", "torch")
    outcome = CliRunner().invoke(app, build)
    assert "encoding with torch fp32: asked for" in outcome.output
