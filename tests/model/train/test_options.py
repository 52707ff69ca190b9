"""Options of a training: precision, averages, epochs, the best model, logs. Every one of them survives a kill."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_support import tiny, train_until_killed, with_model

from model.checkpoint import load_checkpoint
from model.config import EMCLConfig, load_mapping
from model.data.validation import TestSplitError
from model.demo.corpus import write_corpus
from model.train.log import RunLog
from model.train.run import Trainer, TrainingDivergedError, train
from model.train.state import Best, WeightAverage, load_state, newest_checkpoint, save_state
from model.train.step import MAX_SKIPPED_IN_A_ROW

REFERENCE = EMCLConfig.reference(num_bases=4, iterations=2).model_dump(mode="json")
BERT_ADAM = {"kind": "bert-adam", "learning_rate": 1e-3, "encoder_learning_rate": 5e-4}


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("own"), split="train", count=6, workers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory, listing):
    held_out = write_corpus(tmp_path_factory.mktemp("held_out"), split="val", count=4, captions=1, workers=1)
    return {"kind": "manifest", "train": str(listing), "validation": str(held_out)}


def log_of(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_at(monkeypatch, number):
    step = Trainer.step

    def stopped(self, at, *arguments, **options):
        if at == number:
            raise KeyboardInterrupt
        return step(self, at, *arguments, **options)

    monkeypatch.setattr(Trainer, "step", stopped)


def everything(data):
    """Two epochs of three batches of own videos, with all options that keep something between steps."""
    config = tiny(
        data=data,
        **{"steps": None, "epochs": 2, "epoch_of": "captions", "batch_size": 4, "augmentation": "randaugment"},
        **{"optimiser": BERT_ADAM, "ema_decay": 0.9, "precision": "fp16", "keep_best": True},
        **{"chunk_size": 3, "gradient_checkpointing": True, "emcl_ramp_steps": 4, "validate_every": 2},
    )
    return with_model(config, emcl=REFERENCE, pooling={"temperature": 3.0, "mask": "after"})


@pytest.mark.parametrize("at", [1, 4])
def test_with_everything_on_a_killed_and_resumed_run_ends_in_the_same_bits(data, tmp_path, monkeypatch, at):
    config = everything(data)
    train(config, tmp_path / "whole", device="cpu")
    train_until_killed(monkeypatch, config, tmp_path / "killed", at=at, device="cpu")
    torch.manual_seed(12345)  # whatever happened in between
    changed = config.model_copy(update={"timeout_seconds": 60.0})  # on which no weight depends
    train(changed, tmp_path / "killed", resume=True, device="cpu")
    for name in ("model", "best", "last"):
        whole, resumed = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "killed"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole.keys() | resumed.keys()), name
    metadata = [load_mapping(tmp_path / run / "model.json")["metadata"] for run in ("whole", "killed")]
    assert metadata[0] == metadata[1]
    kept = [{key: value for key, value in entry.items() if key not in ("seconds", "examples_per_second")}
            for entry in log_of(tmp_path / "killed")]  # fmt: skip
    for entry, other in zip(kept, log_of(tmp_path / "whole"), strict=True):
        assert entry.items() <= other.items()
    assert kept[-2]["step"] == 2 * (12 // 4)  # captions are the items: two per clip


def test_fp16_skips_overflowing_steps_logs_them_and_goes_on(tmp_path):
    trainer = Trainer(tiny(precision="fp16", log_every=50), tmp_path, device="cpu")
    before = {name: p.detach().clone() for name, p in trainer.net.named_parameters()}
    trainer.state.scaler.load_state_dict({**trainer.state.scaler.state_dict(), "scale": 2.0**120})
    trainer.net.train()
    result = trainer.step(0, trainer.data.batch(0))
    assert result.skipped
    assert all(torch.equal(p, before[name]) for name, p in trainer.net.named_parameters())
    assert trainer.state.progress.skipped == 1
    log = RunLog(tmp_path, steps_done=0, tensorboard=False)
    trainer.after_step(log, 1, result, None)
    assert log_of(tmp_path) == [{"step": 1, "skipped": "fp16 overflow", "loss_scale": 2.0**119}]
    trainer.state.scaler.load_state_dict({**trainer.state.scaler.state_dict(), "scale": 1.0})
    assert not trainer.step(1, trainer.data.batch(1)).skipped
    assert trainer.state.progress.skipped == 0
    assert not torch.equal(trainer.net.temporal.positions.weight, before["temporal.positions.weight"])


def test_fp16_gives_up_after_too_many_skipped_steps(tmp_path):
    trainer = Trainer(tiny(precision="fp16"), tmp_path, device="cpu")
    trainer.state.scaler.load_state_dict({**trainer.state.scaler.state_dict(), "scale": 2.0**120})
    trainer.state.progress.skipped = MAX_SKIPPED_IN_A_ROW
    with pytest.raises(TrainingDivergedError, match=r"overflowed in 25 steps .* at step 0.*train-0-000000"):
        trainer.step(0, trainer.data.batch(0))


def test_the_state_of_the_scaler_is_kept(tmp_path):
    trainer = Trainer(tiny(precision="fp16"), tmp_path, device="cpu")
    trainer.step(0, trainer.data.batch(0))
    trainer.state.scaler.load_state_dict({**trainer.state.scaler.state_dict(), "scale": 48.0, "_growth_tracker": 7})
    trainer.state.progress.skipped = 3
    trainer.state.progress.best = Best(step=1, score=12.5)
    save_state(trainer.state, tmp_path, 1)
    other = Trainer(tiny(precision="fp16"), tmp_path, device="cpu")
    load_state(other.state, newest_checkpoint(tmp_path))
    assert other.state.scaler.state_dict() == trainer.state.scaler.state_dict()
    assert other.state.progress == trainer.state.progress


def test_a_gradient_that_is_not_finite_stops_with_step_and_clips(tmp_path):
    trainer = Trainer(tiny(), tmp_path, device="cpu")
    trainer.net.temporal.positions.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingDivergedError, match=r"gradient's norm is (nan|inf) at step 2.*train-0-000000"):
        trainer.step(2, trainer.data.batch(0))


def test_the_average_is_that_of_the_formula_and_leaves_the_net_alone(tmp_path):
    net = Trainer(tiny(), tmp_path, device="cpu").net
    average = WeightAverage(net, decay=0.5)
    expected = net.temporal.positions.weight.detach().clone()
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12]):
        with torch.no_grad():
            net.temporal.positions.weight += 1
            net.emcl.state *= 0.5
        expected = decay * expected + (1 - decay) * net.temporal.positions.weight.detach()
        average.update(step)
    assert "emcl.state" not in average.values
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with average.in_place():
        torch.testing.assert_close(net.temporal.positions.weight.detach(), expected)
        assert torch.equal(net.emcl.state, own["emcl.state"])
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ValueError, match="of another net"):
        average.load({"x": torch.zeros(1)})


def test_the_average_is_validated_and_shipped(tmp_path, monkeypatch):
    seen = []

    def fake(net, *_):
        seen.append(net.temporal.positions.weight.detach().clone())

    monkeypatch.setattr("model.train.tasks.validate", fake)
    config = tiny(steps=3, ema_decay=0.99)
    path = train(config, tmp_path, device="cpu")
    average = load_file(newest_checkpoint(tmp_path) / "average.safetensors")["temporal.positions.weight"]
    live = load_file(newest_checkpoint(tmp_path) / "model.safetensors")["temporal.positions.weight"]
    shipped = load_checkpoint(path).state_dict()["temporal.positions.weight"]
    assert torch.equal(shipped, average)
    assert torch.equal(seen[-1], average)
    assert not torch.equal(shipped, live)
    metadata = load_mapping(path.with_suffix(".json"))["metadata"]
    assert metadata["weights"] == "moving average, decay 0.99"
    assert metadata["selected"] == "last step"


def test_the_best_validation_is_kept_and_named(tmp_path, monkeypatch):
    figures = iter([10.0, 30.0, 30.0, 20.0])
    way = {"R@1": 0.0}
    monkeypatch.setattr(
        "model.train.tasks.validate", lambda *_: {"text_to_video": {"R@1": next(figures)}, "video_to_text": way}
    )
    path = train(tiny(steps=4, validate_every=1, keep_best=True), tmp_path, device="cpu")
    metadata = load_mapping(path.with_suffix(".json"))["metadata"]
    assert metadata["steps"] == 2
    assert metadata["selected"] == "best validation R@1, text to video: 30.00 after step 2"
    assert load_mapping(tmp_path / "last.json")["metadata"]["selected"] == "last step"
    best, model, last = (load_file(tmp_path / f"{name}.safetensors") for name in ("best", "model", "last"))
    assert all(torch.equal(best[name], model[name]) for name in best)
    assert not torch.equal(last["temporal.positions.weight"], model["temporal.positions.weight"])


def test_the_test_split_is_not_selected_on(tmp_path, data):
    published = {"kind": "msrvtt", "root": "x", "annotations": "y"}
    assert tiny(data={**published, "protocol": "reference"}, keep_best=True).keep_best
    assert tiny(data=published, keep_best=True).keep_best
    no_validation = {**published, "held_out_videos": 0}
    with pytest.raises(ValueError, match="keep_best needs validation clips"):
        tiny(data=no_validation, keep_best=True)
    with pytest.raises(ValueError, match="keep_best needs validation clips"):
        tiny(data={"kind": "synthetic", "validation_clips": 0}, keep_best=True)
    held_out = Path(data["validation"])
    named = held_out.with_name("test.jsonl")
    named.write_bytes(held_out.read_bytes())
    config = tiny(data={**data, "validation": str(named)}, batch_size=2, keep_best=True)
    with pytest.raises(TestSplitError, match="settings are never chosen on a test split"):
        Trainer(config, tmp_path, device="cpu")


def test_a_split_that_is_test_needs_the_reference_protocol(monkeypatch):
    monkeypatch.setattr("model.train.config.selection_split", lambda _: "test")
    with pytest.raises(ValueError, match="protocol: reference may do that"):
        tiny(data={"kind": "msrvtt", "root": "x", "annotations": "y"}, keep_best=True)


def test_epochs_count_items_and_shuffle_anew(listing, tmp_path):
    data = {"kind": "manifest", "train": str(listing)}
    changes = {"steps": None, "epochs": 3, "batch_size": 5}
    videos = Trainer(tiny(data=data, **changes), tmp_path, device="cpu")
    captions = Trainer(tiny(data=data, epoch_of="captions", **changes), tmp_path, device="cpu")
    assert (videos.steps, captions.steps) == (3 * (6 // 5), 3 * (12 // 5))
    epochs = [
        [pair for step in range(2) for pair in _pairs(captions.data.batch(2 * epoch + step))] for epoch in range(2)
    ]
    assert all(len(set(pairs)) == 10 for pairs in epochs)
    assert epochs[0] != epochs[1]


def _pairs(batch):
    return list(zip(batch.clip_ids, batch.captions, strict=True))


def test_a_run_has_steps_or_epochs():
    manifest = {"kind": "manifest", "train": "x.jsonl"}
    with pytest.raises(ValueError, match="this one has both"):
        tiny(data=manifest, epochs=1)
    with pytest.raises(ValueError, match="this one has neither"):
        tiny(data=manifest, steps=None)
    with pytest.raises(ValueError, match="generated scenes have no epochs, but epochs and validate_every: epoch"):
        tiny(steps=None, epochs=1, validate_every="epoch")


def test_once_an_epoch_is_a_measure_of_time(data, tmp_path):
    config = tiny(data=data, steps=None, epochs=2, batch_size=3, validate_every="epoch", checkpoint_every="epoch")
    train(config, tmp_path, device="cpu")
    assert [entry["step"] for entry in log_of(tmp_path) if "validation" in entry] == [2, 4]


@pytest.mark.parametrize("emcl", [{"num_bases": 4, "iterations": 2, "beta": 0.2}, REFERENCE])
def test_the_strength_of_the_pass_rises_and_is_logged(tmp_path, emcl):
    config = with_model(tiny(steps=5, emcl_ramp_steps=4, validate_every=5), emcl=emcl)
    train(config, tmp_path, device="cpu")
    ratios = [entry["emcl"]["correction_ratio"] for entry in log_of(tmp_path) if "emcl" in entry]
    assert len(ratios) == 5
    assert ratios[0] == 0
    assert ratios[1] < ratios[2] < ratios[3] < ratios[4]
    if emcl is not REFERENCE:
        assert ratios == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    with pytest.raises(ValueError, match="emcl_ramp_steps has no effect"):
        tiny(emcl_ramp_steps=4, joint_emcl=False)


def test_without_the_joint_pass_there_is_nothing_to_diagnose(tmp_path):
    train(tiny(steps=1, joint_emcl=False), tmp_path, device="cpu")
    assert all("emcl" not in entry for entry in log_of(tmp_path))


def test_tensorboard_gets_the_numbers_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny(steps=2, tensorboard=True), tmp_path, device="cpu")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([entry["loss"] for entry in log_of(tmp_path) if "loss" in entry])
    assert {"emcl/effective_rank", "validation/text_to_video/R@1", "learning_rate"} <= set(events.Tags()["scalars"])


def test_a_missing_tensorboard_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'emcl-search\[train\]'"):
        train(tiny(tensorboard=True), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
