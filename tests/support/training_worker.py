"""What a process of a training group does in tests/model/train/test_distributed.py: the scenarios of a JSON file, one
by one.

    python training_worker.py SCENARIOS OUTPUT [--double]

Each scenario is {"name", "do": "gradients" | "weights" | "train" | "drift" | "diverge" | "lose", "config"}. The first
process writes OUTPUT/NAME.safetensors: the gradients with the loss, or the weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.clip.towers import DTYPES
from model.train.config import TrainConfig
from model.train.distributed import RanksDisagreeError, World, join_world
from model.train.loop import Trainer, training_mode
from model.train.run import TrainingDivergedError, train_as

# In float64 rounding cannot hide a wrong gradient: the net's conversions to float32 then keep its 53 bits.
DOUBLE = "--double" in sys.argv
if DOUBLE:
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    DTYPES["fp32"] = torch.float64


def gradients(config: TrainConfig, output: Path, world: World) -> dict[str, torch.Tensor]:
    """Loss and summed gradients of step 0, before the clip, and the EMCL state after it."""
    trainer = Trainer(config, output, world=world)
    training_mode(trainer.net, config)
    if DOUBLE:
        trainer.net.double()
    share = trainer.data.batch(0, world.share)
    loss, _ = trainer.stepper.gradients(0, share, with_diagnostics=False)
    found = {name: p.grad.clone() for name, p in trainer.net.named_parameters() if p.grad is not None}
    return {**found, "loss": torch.tensor(loss, dtype=torch.float64), "state": trainer.net.emcl.state.clone()}


def weights(config: TrainConfig, output: Path, world: World) -> dict[str, torch.Tensor]:
    """The net after ``config.steps`` steps."""
    trainer = Trainer(config, output, world=world)
    training_mode(trainer.net, config)
    if DOUBLE:
        trainer.net.double()
    for number in range(config.steps):
        trainer.step(number, trainer.data.batch(number, world.share))
    return {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}


def drift(config: TrainConfig, output: Path, world: World) -> None:
    trainer = Trainer(config, output, world=world)
    trainer.world.require_agreement(trainer.net.state_dict().values(), 1)
    if world.rank:
        with torch.no_grad():
            trainer.net.emcl.state[0, 0] += 1e-7
    try:
        trainer.world.require_agreement(trainer.net.state_dict().values(), 2)
    except RanksDisagreeError as error:
        print("drift:", error)


def lose(config: TrainConfig, output: Path, world: World) -> None:
    trainer = Trainer(config, output, world=world)
    trainer.step(0, trainer.data.batch(0, world.share))
    if world.rank:
        sys.stdout.flush()
        os._exit(9)
    trainer.step(1, trainer.data.batch(1, world.share))


def diverge(config: TrainConfig, output: Path, world: World) -> None:
    trainer = Trainer(config, output, world=world)
    with torch.no_grad():
        trainer.net.clip.logit_scale.fill_(float("nan"))
    try:
        trainer.step(4, trainer.data.batch(4, world.share))
    except TrainingDivergedError as error:
        print("diverged:", error)


def die_at(number: int) -> None:
    """End this process without a word when it comes to a step."""
    step = Trainer.step

    def dying(self: Trainer, at: int, *arguments: Any, **options: Any) -> Any:
        if at == number:
            os._exit(9)
        return step(self, at, *arguments, **options)

    Trainer.step = dying  # type: ignore[method-assign]


def main() -> None:
    scenarios, output = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    with join_world("cpu", timeout_seconds=300) as world:
        for scenario in scenarios:
            do, name, config = scenario["do"], scenario["name"], TrainConfig.model_validate(scenario["config"])
            if do in ("gradients", "weights"):
                found = {"gradients": gradients, "weights": weights}[do](config, output, world)
                if world.is_first:
                    save_file(found, output / f"{name}.safetensors")
            elif do == "train":
                if "die_at" in scenario:
                    die_at(scenario["die_at"])
                train_as(config, output / name, world)
            else:
                {"drift": drift, "lose": lose, "diverge": diverge}[do](config, output, world)


if __name__ == "__main__":
    main()
