"""Exports: the same features and rankings as fp32, kept by fingerprint, judged by the guard, refused when damaged."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from service_support import serving

from model.clip.preprocess import Preprocess
from model.encoder import export_store, load_encoder
from model.export.export import MAX_TOWER_BYTES, check_size, export, generated_samples
from model.export.guard import MIN_VIDEOS, Samples, encode_samples, judge
from model.runtime import choose as runtime_module
from model.runtime.choose import RuntimeUnavailableError
from model.runtime.store import ExportError, ExportStore, default_folder

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = ["a red circle", "a small blue star moves to the left, then up, in front of a striped green wall", "a", ""]
KINDS = ("onnx", "onnx-int8", "torch-bf16")


@pytest.fixture(autouse=True)
def has_the_instructions(monkeypatch):
    """As on a processor with VNNI and bf16: what is tested is not the speed, and few bytes saturate in these models."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return generated_samples(40, preprocess=Preprocess.square(64))


@pytest.fixture(scope="module")
def exports(tmp_path_factory, samples):
    """Everything exported of the demo model."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        encoder = load_encoder("demo", device="cpu")
        report = export(encoder, export_store("demo", encoder.fingerprint, folder=folder), kind, samples)
        assert report.passed, report.lines()
    return folder


@pytest.fixture(scope="module")
def plain():
    return load_encoder("demo", device="cpu")


@pytest.fixture
def copied(exports, tmp_path):
    """A copy of the exports that a test may damage."""
    return shutil.copytree(exports, tmp_path / "copied")


def load(folder, runtime, **options):
    return load_encoder("demo", device="cpu", runtime=runtime, precision="auto", exports=folder, **options)


# -- the same features


@pytest.mark.parametrize(("runtime", "cosine"), [("onnx", 0.99999), ("onnx-int8", 0.99)])
def test_an_export_gives_the_features_of_fp32(runtime, cosine, exports, plain, samples):
    fast = load(exports, runtime)
    for ours, theirs in (
        (fast.encode_texts(TEXTS), plain.encode_texts(TEXTS)),
        (fast_frames(fast, samples), fast_frames(plain, samples)),
    ):
        cosines = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
        assert cosines.min() > cosine
    assert fast.fingerprint == plain.fingerprint
    assert {tower.runtime for tower in fast.runtime.towers.values()} == {runtime}


def fast_frames(encoder, samples):
    stacked = np.stack(samples.frames[:5])
    return encoder.encode_videos(stacked, np.ones(stacked.shape[:2], bool)).reshape(-1, encoder.dim)


def test_onnx_ranks_the_ten_best_as_fp32(exports, plain, samples):
    found = judge("onnx", samples, encode_samples(plain, samples), encode_samples(load(exports, "onnx"), samples))
    assert found.top10_overlap == 1.0
    assert found.recall_fast == found.recall_plain
    assert found.recall_plain[1] > 50  # the demo model does find its scenes, so recall means something


@pytest.mark.parametrize("runtime", ["onnx", "onnx-int8"])
def test_what_an_answer_is_does_not_depend_on_its_batch(runtime, exports, samples):
    fast = load(exports, runtime)
    together = fast.encode_texts(TEXTS)
    alone = np.concatenate([fast.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    frames = np.stack(samples.frames[:3])
    many = fast.encode_videos(frames, np.ones(frames.shape[:2], bool))
    one = fast.encode_videos(frames[1:2], np.ones((1, frames.shape[1]), bool))
    np.testing.assert_allclose(many[1:2], one, rtol=1e-4, atol=1e-4)


def test_the_weights_of_pytorch_give_their_memory_back(exports):
    fast = load(exports, "onnx")
    assert {parameter.device.type for parameter in fast.net.clip.model.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in fast.net.temporal.parameters()} == {"cpu"}


@pytest.mark.parametrize("runtime", ["onnx", "onnx-int8"])
def test_a_vision_transformer_is_exported_for_any_batch_and_length(runtime, tiny_checkpoint, tiny_encoder, tmp_path):
    encoder = load_encoder(str(tiny_checkpoint), device="cpu")
    store = export_store(str(tiny_checkpoint), encoder.fingerprint, folder=tmp_path)
    export(encoder, store, runtime, generated_samples(MIN_VIDEOS, preprocess=Preprocess.square(32)))
    ours, theirs = encoder.encode_texts(TEXTS), tiny_encoder.encode_texts(TEXTS)  # by the export from then on
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > (0.99999 if runtime == "onnx" else 0.9)


# -- on disk


def test_exports_are_kept_by_fingerprint_beside_the_checkpoint(exports, plain, tmp_path):
    assert all(file.name.startswith(plain.fingerprint[:16]) for file in exports.iterdir())
    assert default_folder(str(tmp_path / "m.safetensors"), is_checkpoint=True) == tmp_path / "m.exports"
    assert str(default_folder("demo", is_checkpoint=False)) == "var/exports"
    assert str(default_folder(None, is_checkpoint=False)) == "var/exports"
    other = ExportStore(exports, "0" * 64, model="other")
    assert other.offer("onnx") == other.offer("onnx")
    assert not other.offer("onnx").exists


def test_the_guards_result_lies_beside_the_export(exports, plain):
    stored = json.loads((exports / f"{plain.fingerprint[:16]}-onnx-int8.json").read_text())
    assert stored["guard"]["failures"] == []
    assert stored["guard"]["top10_overlap"] >= 0.9
    assert {"text", "image"} == stored["files"].keys()


def test_a_second_export_replaces_the_first_and_leaves_others_alone(copied, samples, plain):
    before = {path.name for path in copied.iterdir()}
    store = export_store("demo", plain.fingerprint, folder=copied)
    stale = copied / f"{plain.fingerprint[:16]}-onnx-text-00000000.onnx"
    stale.write_bytes(b"of an export before")
    export(load_encoder("demo", device="cpu"), store, "onnx", samples)
    after = {path.name for path in copied.iterdir()}
    assert stale.name not in after
    assert {name for name in before if "int8" in name or "bf16" in name} <= after
    assert load(copied, "onnx").runtime.label == "onnx fp32"


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def test_a_damaged_export_is_refused_by_name_and_passed_over_by_auto(copied, caplog):
    damage(next(copied.glob("*-onnx-int8-text-*")))
    with pytest.raises(ExportError, match=r"does not match its checksum.*export again: emcl export --model demo"):
        load(copied, "onnx-int8")
    chosen = load(copied, "auto").runtime
    assert chosen.label == "torch fp32"
    assert "unusable" in chosen.reason
    assert "does not match its checksum" in caplog.text


def test_a_cut_or_missing_file_is_refused(copied):
    file = next(copied.glob("*-onnx-int8-image-*"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"has 1000 bytes, its manifest says \d+; export again"):
        load(copied, "onnx-int8")
    file.unlink()
    with pytest.raises(ValueError, match="has 0 bytes"):
        load(copied, "onnx-int8")


def test_an_export_of_another_checkpoint_is_refused(copied, plain, tiny_checkpoint, tiny_encoder):
    foreign = copied / f"{tiny_encoder.fingerprint[:16]}-onnx.json"
    (copied / f"{plain.fingerprint[:16]}-onnx.json").rename(foreign)
    with pytest.raises(ValueError, match=rf"checkpoint {plain.fingerprint[:12]}, expected onnx of .* export again"):
        load_encoder(str(tiny_checkpoint), device="cpu", runtime="onnx", precision="auto", exports=copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(format=99), "has format 99, this program reads 1"),
        (lambda body: body.update(surprise=1), "damaged or of another release"),
        (lambda body: body["files"]["text"].update(name="../../etc/x.onnx"), "damaged or of another release"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(change, message, copied, plain):
    path = copied / f"{plain.fingerprint[:16]}-onnx.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=f"{message}.*export again"):
        load(copied, "onnx")


def test_a_file_that_onnxruntime_cannot_open_is_refused_with_the_next_step(tmp_path):
    from model.runtime.onnx import OnnxTowers

    file = tmp_path / "text.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(RuntimeUnavailableError, match=r"cannot open .* export again"):
        OnnxTowers({"text": file, "image": file}, trims_text=True, one_by_one=False)


def test_a_tower_that_no_file_can_hold_is_refused(plain, monkeypatch):
    monkeypatch.setattr("model.export.export.MAX_TOWER_BYTES", 1000)
    with pytest.raises(ExportError, match=r"the text tower has .* an ONNX file holds at most"):
        check_size(plain.net.clip, "text")
    assert MAX_TOWER_BYTES < 2**31


# -- without the extra


def test_without_onnxruntime_the_error_names_the_extra(exports, samples, plain, monkeypatch, tmp_path):
    monkeypatch.setattr(runtime_module, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install 'emcl-search\[onnx\]'"):
        load(exports, "onnx")
    store = export_store("demo", plain.fingerprint, folder=tmp_path)
    with pytest.raises(RuntimeUnavailableError, match=r"emcl-search\[onnx\]"):
        export(load_encoder("demo", device="cpu"), store, "onnx", samples)
    assert load(exports, "auto").runtime.label == "torch bf16"


# -- the command, and the service


@pytest.fixture
def emcl(monkeypatch, capsys):
    from service_support import emcl_command

    return emcl_command(monkeypatch, capsys)


def test_the_command_exports_and_shows_what_was_measured(emcl, tmp_path):
    code, out, _ = emcl(
        "export", "--model", "demo", "--runtime", "onnx", "--output", str(tmp_path), "--sample-videos", "20"
    )
    assert code == 0
    assert "ten best videos" in out
    assert "passed" in out
    assert load(tmp_path, "auto").runtime.label == "onnx fp32"


@pytest.fixture(scope="module")
def tiny_exports(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_exports")
    encoder = load_encoder(str(tiny_checkpoint), device="cpu")
    store = export_store(str(tiny_checkpoint), encoder.fingerprint, folder=folder)
    assert export(encoder, store, "onnx", generated_samples(MIN_VIDEOS, preprocess=Preprocess.square(32))).passed
    return folder


def test_a_service_answers_the_same_and_says_what_computes(
    tiny_checkpoint, tiny_exports, tiny_encoder, clip_store, tmp_path
):
    fast = load_encoder(str(tiny_checkpoint), device="cpu", runtime="onnx", precision="auto", exports=tiny_exports)
    answers = []
    for name, encoder in (("plain", tiny_encoder), ("fast", fast)):
        with serving(clip_store, encoder, tmp_path / name) as client:
            answers.append(client.post("/v1/search", json={"text": "a red circle", "k": 6}).json()["hits"])
            described, metrics = client.get("/v1/index").json(), client.get("/metrics").text
    assert described["runtime"] == "onnx fp32"
    assert described["runtime_reason"] == "asked for"
    assert 'runtime="onnx fp32"' in metrics
    assert [hit["video_id"] for hit in answers[0]] == [hit["video_id"] for hit in answers[1]]
    np.testing.assert_allclose(*([hit["score"] for hit in hits] for hits in answers), atol=1e-4)


def test_settings_reach_the_model_that_is_served(tiny_checkpoint, tiny_exports, clip_store):
    from service.search.engine import build_engine
    from service.settings import load_settings

    settings = load_settings(
        {
            "store": clip_store / "store",
            "model": str(tiny_checkpoint),
            "device": "cpu",
            "runtime": "auto",
            "precision": "fp32",
            "exports": tiny_exports,
        }
    )
    engine = build_engine(settings)
    try:
        assert engine.encoder.runtime.label == "onnx fp32"
        assert engine.search([]) == []
    finally:
        engine.close()


def test_onnxruntime_sends_no_usage_data_unless_asked(exports):
    """Nor does it start the thread for it, with which no worker could be forked."""
    code = (
        "import model, os, sys, torch; from service.workers import check_forkable; torch.set_num_threads(1);"
        "from model.runtime.onnx import _session; session = _session(sys.argv[1]); check_forkable('it');"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], os.environ['RAY_USAGE_STATS_ENABLED'])"
    )
    path = next(exports.glob("*int8-text*.onnx"))
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and "RAY" not in name}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "0"]), done.stderr
    code = "import model, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment |= {"ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
