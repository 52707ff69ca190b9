"""Small training runs, and groups of processes that train together over gloo, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.train.config import TrainConfig
from model.train.run import Trainer, train


def tiny_settings(**changes) -> dict[str, Any]:
    """A run of a second, as a file would hold it: 8 clips of 32 x 32 per step."""
    return {
        "model": {
            "clip": {
                "custom": {
                    "embed_dim": 32,
                    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
                    "text_cfg": {"context_length": 48, "vocab_size": 1014, "width": 32, "heads": 2, "layers": 1},
                }
            },
            "tokenizer": {"max_words": 48, "merges": 500},
            "temporal": {"layers": 1, "max_positions": 8},
            "emcl": {"num_bases": 4, "iterations": 2, "beta": 0.05},
            "sampling": {"sample_fps": 1.0, "max_frames": 4},
        },
        "data": {"kind": "synthetic", "validation_clips": 8},
        "optimiser": {"learning_rate": 1e-3, "encoder_learning_rate": 5e-4, "warmup_steps": 2},
        "batch_size": 8,
        "steps": 6,
        "workers": 0,
        "log_every": 1,
        "validate_every": 3,
        "checkpoint_every": 2,
        **changes,
    }


# A training of a second or two, long enough to be met while it runs.
TINY = tiny_settings(
    data={"kind": "synthetic", "validation_clips": 4}, batch_size=4, steps=60, validate_every=60, checkpoint_every=5
)


def training_job(**changes) -> dict[str, Any]:
    """The request for such a training, with changes to its configuration."""
    return {"kind": "train", "config": {**TINY, **changes}, "device": "cpu"}


def tiny(**changes) -> TrainConfig:
    """The run of ``tiny_settings``."""
    return TrainConfig.model_validate(tiny_settings(**changes))


def with_model(config: TrainConfig, **changes) -> TrainConfig:
    """The run with other parts in its model."""
    model = {**config.model.model_dump(mode="json"), **changes}
    return TrainConfig.model_validate({**config.model_dump(mode="json"), "model": model})


def train_until_killed(monkeypatch, config: TrainConfig, output: Path, *, at: int = 3, **options) -> None:
    """Train until step ``at``, which is not made; with checkpoints every 2 steps, 3 is one step after a checkpoint."""
    step = Trainer.step

    def killed(self, number, *arguments, **step_options):
        if number == at:
            raise KeyboardInterrupt
        return step(self, number, *arguments, **step_options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, output, **options)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by name."""
    return load_checkpoint(path).state_dict()


def assert_resumes_in_the_same_bits(monkeypatch, config: TrainConfig, folder: Path) -> None:
    """A run that is killed and resumed ends with the very weights of one that is not."""
    expected = weights(train(config, folder / "whole"))
    train_until_killed(monkeypatch, config, folder / "killed")
    torch.manual_seed(12345)  # whatever happened in between
    resumed = weights(train(config, folder / "killed", resume=True))
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.items())


def start_group(size: int, script: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start ``size`` processes of a script with the environment that torchrun gives its workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def run_group(size: int, script: Path, *arguments: str, codes: tuple[int, ...] | None = None) -> list[tuple[str, str]]:
    """Run a group to its end: what each process wrote to its output and its errors.

    ``codes`` are the exit codes that are expected, by default 0 of all.
    """
    processes = start_group(size, script, *arguments)
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = tuple(process.returncode for process in processes)
    assert found == (codes or (0,) * size), f"exit codes {found}:\n" + "\n".join(errors for _, errors in said)
    return said
