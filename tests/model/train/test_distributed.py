"""Several processes train as one: same loss, gradients and weights; a lost or drifting process is an error."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_support import run_group, tiny, tiny_settings, with_model

from model.checkpoint import load_checkpoint
from model.clip.towers import DTYPES
from model.config import EMCLConfig
from model.data.batches import Share
from model.train.distributed import World
from model.train.grad_cache import encode_batch
from model.train.loop import Trainer
from model.train.state import newest_checkpoint
from model.train.tasks import contrastive_loss

WORKER = Path(__file__).parents[2] / "support" / "training_worker.py"
REFERENCE = EMCLConfig.reference(num_bases=4, iterations=2).model_dump(mode="json")
AFTER = {"temperature": 3.0, "mask": "after"}


def scenarios():
    channel = tiny(batch_size=7)
    reference = with_model(channel, emcl=REFERENCE, pooling=AFTER)
    return {
        "channel": channel,
        "reference": reference,
        "without": channel.model_copy(update={"joint_emcl": False}),
        "chunks": reference.model_copy(update={"chunk_size": 2}),
        "checkpointing": channel.model_copy(update={"gradient_checkpointing": True, "chunk_size": 3}),
        "objects": tiny(batch_size=5, data={"kind": "synthetic", "object_steps": 1.0, "validation_clips": 0}),
    }


def run(size, tmp_path, plan, *options, **expected):
    file = tmp_path / "scenarios.json"
    file.write_text(json.dumps(plan), encoding="utf-8")
    return run_group(size, WORKER, str(file), str(tmp_path), *options, **expected)


def entry(do, name, config, **more):
    return {"do": do, "name": name, "config": config.model_dump(mode="json"), **more}


def own_gradients(config, tmp_path, dtype):
    """By plain autograd through the whole net, at once, in this process: nothing of the trainer's step."""
    plain = config.model_copy(update={"gradient_checkpointing": False, "chunk_size": None})
    trainer = Trainer(plain, tmp_path, device="cpu")
    net = trainer.net.train().to(dtype)
    batch = trainer.data.batch(0)
    encoded = encode_batch(net, trainer.tokenizer, batch, torch.device("cpu"))
    identities = torch.from_numpy(batch.identities)
    loss = contrastive_loss(net, *encoded, joint_emcl=plain.joint_emcl, identities_B2=identities)
    loss.backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach().double(), "state": net.emcl.state}


BERT_ADAM = {"kind": "bert-adam", "warmup_share": 0.0, "learning_rate": 1e-3, "encoder_learning_rate": 5e-4}


def own_weights(config, tmp_path, dtype):
    trainer = Trainer(config, tmp_path, device="cpu")
    trainer.net.train().to(dtype)
    for number in range(config.steps):
        trainer.step(number, trainer.data.batch(number))
    return trainer.net.state_dict()


def require_equal(name, found, expected, tolerance):
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert (found[key] - tensor).abs().max() <= tolerance, f"{name} {key}"


def test_two_processes_have_the_gradients_of_one_notice_drift_and_nan_and_do_not_wait_for_the_dead(tmp_path):
    # BertAdam's epsilon damps what AdamW makes of gradients that are nothing but rounding, as those of key biases.
    steps = tiny(batch_size=7, steps=3, optimiser=BERT_ADAM)
    plan = [entry("gradients", name, config) for name, config in scenarios().items()]
    plan += [entry("weights", "steps", steps)]
    plan += [entry(what, what, tiny(batch_size=7)) for what in ("drift", "diverge", "lose")]
    said = run(2, tmp_path, plan, codes=(1, 9))
    assert all("after step 2 the processes hold different weights" in output for output, _ in said)
    clips = Trainer(tiny(batch_size=7), tmp_path, device="cpu").data.batch(4).clip_ids
    assert all("diverged: the loss is nan at step 4" in output for output, _ in said)
    assert all(", ".join(clips) in output for output, _ in said)
    assert "WorkerLostError: another process of this training ended" in said[0][1]
    for name, config in scenarios().items():
        expected = own_gradients(config, tmp_path, torch.float32)
        assert expected.keys() >= {"clip.model.logit_scale", "temporal.positions.weight", "state"}
        # The optimiser sees gradients that are clipped to norm 1, so 1e-6 there is 1e-6 of their norm here.
        norm = float(torch.stack([gradient.double().norm() for gradient in expected.values()]).norm())
        require_equal(name, load_file(tmp_path / f"{name}.safetensors"), expected, 1e-6 * max(1.0, norm))
    require_equal("steps", load_file(tmp_path / "steps.safetensors"), own_weights(steps, tmp_path, torch.float32), 1e-6)


@pytest.mark.slow
def test_three_processes_have_the_gradients_of_one_to_the_last_digits_of_float64(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setitem(DTYPES, "fp32", torch.float64)
    steps = tiny(batch_size=7, steps=3)
    plan = [entry("gradients", name, config) for name, config in scenarios().items()]
    head = {"dim": 16, "heads": 2, "inner": 32, "length": 40, "dropout": 0, "attention_dropout": 0, "emcl": REFERENCE}
    model = {**tiny_settings()["model"], "caption": head}
    captions = tiny(batch_size=7, steps=3, task="captioning", model=model)
    head = {"layers": 1, "projected": 16, "hidden": 32, "dropout": 0, "emcl": REFERENCE}
    answers = tiny(batch_size=7, steps=3, task="qa", model={**tiny_settings()["model"], "qa": head})
    runs = {"steps": steps, "captions": captions, "answers": answers}
    run(3, tmp_path, [*plan, *(entry("weights", name, config) for name, config in runs.items())], "--double")
    for name, config in scenarios().items():
        expected = own_gradients(config, tmp_path, torch.float64)
        require_equal(name, load_file(tmp_path / f"{name}.safetensors"), expected, 1e-11)
    for name, config in runs.items():
        expected = own_weights(config, tmp_path, torch.float64)
        require_equal(name, load_file(tmp_path / f"{name}.safetensors"), expected, 1e-8)


@pytest.mark.slow
def test_two_processes_resume_in_the_same_bits(tmp_path):
    settings = {"ema_decay": 0.9, "chunk_size": 3, "precision": "bf16", "emcl_ramp_steps": 3, "keep_best": True}
    optimiser = {"kind": "bert-adam", "learning_rate": 1e-3, "encoder_learning_rate": 5e-4}
    config = with_model(tiny(steps=5, optimiser=optimiser, **settings), emcl=REFERENCE)
    run(2, tmp_path, [entry("train", "whole", config), entry("train", "killed", config, die_at=3)], codes=(9, 9))
    assert newest_checkpoint(tmp_path / "killed").name == "step-0000002"
    run(2, tmp_path, [entry("train", "killed", config)])
    for name in ("model", "best", "last"):
        whole, resumed = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "killed"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole.keys() | resumed.keys()), name
    assert (tmp_path / "whole" / "log.jsonl").read_text(encoding="utf-8").count('"loss"') == 5  # one process logs


def test_shares_are_the_batch_whatever_their_number(tmp_path):
    for settings in ({}, {"object_steps": 1.0}, {"hard_negatives": 0.7, "short_captions": 0.5}):
        data = Trainer(tiny(batch_size=7, data={"kind": "synthetic", **settings}), tmp_path, device="cpu").data
        whole = data.batch(3)
        for size in (2, 3, 7):
            parts = [data.batch(3, Share(rank=rank, size=size)) for rank in range(size)]
            assert [name for part in parts for name in part.clip_ids] == whole.clip_ids
            assert [text for part in parts for text in part.captions] == whole.captions
            assert np.array_equal(np.concatenate([part.frames_BFHWC for part in parts]), whole.frames_BFHWC)


def test_more_processes_than_clips_are_refused(tmp_path):
    world = World(rank=0, size=9, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="batch_size 8 leaves some of the 9 processes without a clip"):
        Trainer(tiny(), tmp_path, world=world)


@pytest.mark.slow
def test_torchrun_trains_through_the_command(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tiny(steps=2, batch_size=5).model_dump(mode="json")), encoding="utf-8")
    arguments = ["-m", "service.cli", "train", "--config", str(config), "--output", str(tmp_path / "run")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained:") == 1
    assert load_checkpoint(tmp_path / "run" / "model.safetensors")
