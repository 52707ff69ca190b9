"""Checkpoints of a run: everything that is needed to continue it as if it had never stopped.

    OUTPUT/checkpoints/step-0000500/   model.safetensors · model.json · optimiser.safetensors

A checkpoint is written into a hidden folder that is renamed when it is complete, so a kill at any moment leaves the
last whole one. Nothing is pickled. Batches are a function of the step, so no data position has to be stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.checkpoint import load_checkpoint, save_checkpoint
from model.durable import sync_file
from model.net import EMCLNet

_PREFIX = "step-"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The parts of a run that change: the net (with its EMCL state) and AdamW's moments."""

    net: EMCLNet
    optimiser: torch.optim.AdamW

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return {name: parameter for name, parameter in self.net.named_parameters() if parameter.requires_grad}


def newest_checkpoint(output: Path) -> Path | None:
    """Return the folder of the last complete checkpoint of a run, None if there is none."""
    return max((output / "checkpoints").glob(f"{_PREFIX}*"), default=None)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps that were done when ``checkpoint`` was written."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def save_state(state: TrainState, output: Path, step: int) -> Path:
    """Write the checkpoint after ``step`` steps and remove older ones; returns its folder."""
    folder = output / "checkpoints"
    final, partial = folder / f"{_PREFIX}{step:07d}", folder / f".partial-{step:07d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_checkpoint(state.net, partial / "model.safetensors")
    optimiser_file = partial / "optimiser.safetensors"
    save_file(_optimiser_tensors(state), optimiser_file)
    sync_file(optimiser_file)
    sync_file(partial)
    partial.replace(final)
    sync_file(folder)
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old)
    return final


def load_state(state: TrainState, checkpoint: Path) -> None:
    """Fill ``state`` from a checkpoint of the same configuration. Raises ``ValueError`` if it does not fit."""
    state.net.load_state_dict(load_checkpoint(checkpoint / "model.safetensors").state_dict())
    tensors: Mapping[str, Tensor] = load_file(checkpoint / "optimiser.safetensors")
    for name, parameter in state.named_parameters().items():
        try:
            moments = {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS}
        except KeyError as error:
            raise ValueError(f"{checkpoint} has no optimiser state {error}; it is of another configuration") from error
        # The step count stays on the CPU, where AdamW keeps it unless it is capturable or fused on CUDA.
        moved = {m: value if m == "step" else value.to(parameter.device) for m, value in moments.items()}
        state.optimiser.state[parameter] = moved


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in state.named_parameters().items():
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = state.optimiser.state[parameter][moment].detach().cpu().contiguous()
    return tensors
