"""Training: resumes to the bit, stops at NaN, learns, rejects wrong settings, takes your own videos."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from training_support import tiny, train_until_killed

from model.checkpoint import load_checkpoint, save_checkpoint
from model.clip.preprocess import Preprocess
from model.clip.weights import WeightsError
from model.config import load_mapping
from model.data.manifest import ManifestConfig, ManifestData, read_manifest
from model.demo.corpus import write_corpus
from model.net import build_net
from model.train.config import OptimiserConfig, load_train_config
from model.train.run import Trainer, TrainingDivergedError, rate_factor, train
from model.train.state import newest_checkpoint, save_state, step_of

DEMO_CONFIG = Path(__file__).parents[3] / "configs" / "demo.yaml"


def log_of(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(path):
    return load_checkpoint(path).state_dict()


@pytest.mark.parametrize("joint_emcl", [True, False])
def test_a_killed_and_resumed_run_ends_in_the_same_bits(tmp_path, monkeypatch, joint_emcl):
    config = tiny(joint_emcl=joint_emcl)
    whole = train(config, tmp_path / "whole")
    train_until_killed(monkeypatch, config, tmp_path / "killed")  # one step after a checkpoint: that is done again
    torch.manual_seed(12345)  # whatever happened in between
    resumed = train(config, tmp_path / "killed", resume=True)

    expected = weights(whole)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    assert [entry["step"] for entry in log_of(tmp_path / "killed")] == [e["step"] for e in log_of(tmp_path / "whole")]


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path):
    config = tiny(steps=2)
    train(config, tmp_path)
    last = newest_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / ".partial-0000009").mkdir()
    assert newest_checkpoint(tmp_path) == last
    assert step_of(last) == 2
    trainer = Trainer(config, tmp_path)
    trainer.step(0, trainer.data.batch(0))
    save_state(trainer.state, tmp_path, 3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000003"]


def test_the_loss_falls(tmp_path):
    train(tiny(steps=40, joint_emcl=False, validate_every=40, checkpoint_every=40), tmp_path)
    losses = [entry["loss"] for entry in log_of(tmp_path) if "loss" in entry]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    validation = next(entry["validation"] for entry in log_of(tmp_path) if "validation" in entry)
    assert validation["text_to_video"]["queries"] == 8


def test_workers_change_nothing(tmp_path):
    alone = train(tiny(steps=2, workers=0), tmp_path / "alone")
    helped = train(tiny(steps=2, workers=1), tmp_path / "helped")
    expected = weights(alone)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(helped).items())


def test_nan_stops_with_step_and_clips(tmp_path):
    trainer = Trainer(tiny(), tmp_path)
    with torch.no_grad():
        trainer.net.clip.logit_scale.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match=r"nan at step 4.*train-0-000000"):
        trainer.step(4, trainer.data.batch(0))


def test_the_logit_scale_is_bounded(tmp_path):
    trainer = Trainer(tiny(), tmp_path)
    with torch.no_grad():
        trainer.net.clip.logit_scale.fill_(9.0)
    trainer.step(0, trainer.data.batch(0))
    assert trainer.net.clip.logit_scale.exp().item() <= 100.001


def test_learning_rates_warm_up_and_fall_for_both_groups(tmp_path):
    settings = OptimiserConfig(warmup_steps=10, final_share=0.1)
    factors = [rate_factor(step, 110, settings) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)
    trainer = Trainer(tiny(), tmp_path)
    trainer.step(0, trainer.data.batch(0))
    by_name = {}
    named = {parameter: name for name, parameter in trainer.state.named_parameters().items()}
    for group in trainer.state.optimiser.param_groups:
        for parameter in group["params"]:
            by_name[named[parameter]] = group
    assert by_name["temporal.positions.weight"]["lr"] == pytest.approx(1e-3 / 2)
    assert by_name["clip.model.token_embedding.weight"]["lr"] == pytest.approx(5e-4 / 2)
    assert by_name["clip.model.logit_scale"]["weight_decay"] == 0
    assert len(by_name) == len(named)


def test_an_output_folder_is_not_overwritten(tmp_path):
    train(tiny(steps=1), tmp_path)
    with pytest.raises(ValueError, match="--resume"):
        train(tiny(steps=1), tmp_path)
    with pytest.raises(ValueError, match="other settings for steps"):
        train(tiny(steps=2), tmp_path, resume=True)


def test_a_run_starts_from_a_checkpoint(tmp_path):
    first = train(tiny(steps=2), tmp_path / "first")
    config = tiny(start_from=str(first), steps=1)
    net = Trainer(config, tmp_path / "second").net
    expected = weights(first)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())


def test_a_start_that_does_not_fit_is_named(tmp_path):
    start = save_checkpoint(build_net(tiny().model), tmp_path / "start.safetensors")
    wider = tiny(start_from=str(start))
    other = wider.model.temporal.model_copy(update={"max_positions": wider.model.temporal.max_positions + 1})
    config = wider.model_copy(update={"model": wider.model.model_copy(update={"temporal": other})})
    with pytest.raises(WeightsError, match=r"start.safetensors does not fit this model; 1 of another shape"):
        Trainer(config, tmp_path / "run")


def test_bf16_trains(tmp_path):
    path = train(tiny(steps=2, precision="bf16", saved_dtype="fp16"), tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in weights(path).values())


def test_unknown_settings_fail_and_are_named(tmp_path):
    file = tmp_path / "run.yaml"
    content = load_mapping(DEMO_CONFIG)
    file.write_text(yaml.safe_dump({**content, "learnig_rate": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.yaml.*learnig_rate"):
        load_train_config(file)


def test_the_demo_configuration_fits_together(tmp_path):
    config = load_train_config(DEMO_CONFIG)
    trainer = Trainer(config, tmp_path)
    captions = [caption for batch in trainer.data.validation() for caption in batch.captions]
    lengths = trainer.tokenizer(captions)[1].sum(dim=1)
    assert lengths.max() < config.model.tokenizer.max_words  # no caption of the corpus is cut


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("own"), split="train", count=5, workers=1)


def manifest_data(listing, batch_size=2):
    files = {"train": str(listing), "validation": str(listing)}
    config = tiny(data={"kind": "manifest", **files, "allow_overlap": True})
    assert isinstance(config.data, ManifestConfig)
    return ManifestData(
        config.data, batch_size=batch_size, preprocess=Preprocess.square(32), sampling=config.model.sampling
    )


def test_own_videos_are_seen_once_per_epoch(listing):
    data = manifest_data(listing)
    epoch = [name for step in range(2) for name in data.batch(step).clip_ids]
    assert len(set(epoch)) == 4
    assert data.batch(7).captions == manifest_data(listing).batch(7).captions
    assert sum(len(batch.clip_ids) for batch in data.validation()) == 5


def test_own_videos_train(listing, tmp_path):
    config = tiny(data={"kind": "manifest", "train": str(listing)}, batch_size=2, steps=2)
    assert train(config, tmp_path).exists()


def test_a_broken_video_is_named(listing, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    file = tmp_path / "captions.jsonl"
    lines = [f'{{"video": "broken.mp4", "captions": ["x"], "start": {start}}}\n' for start in (0, 1)]
    file.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be decoded"):
        manifest_data(file).batch(0)


@pytest.mark.parametrize("line", ["{", '{"video": 3}', '{"video": "a.mp4"}', '{"video": "a.mp4", "captions": []}'])
def test_a_wrong_line_of_a_manifest_is_named(tmp_path, line):
    file = tmp_path / "captions.jsonl"
    file.write_text('{"video": "a.mp4", "captions": ["x"]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_manifest(file)


def test_a_batch_cannot_be_larger_than_the_set(listing):
    with pytest.raises(ValueError, match="lower batch_size"):
        manifest_data(listing, batch_size=6)
