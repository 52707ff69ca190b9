"""Checkpoints of a run, with everything needed to continue it exactly, and the moving average of the weights.

    OUTPUT/checkpoints/step-0000500/   model.safetensors · model.json     the net, with its EMCL state
                                       optimiser.safetensors              the optimiser's tensors, KEY/PARAMETER
                                       average.safetensors                the average of the weights, if there is one
                                       progress.json                      gradient scaler, best validation

A checkpoint is written into a hidden folder that is renamed when it is complete, so a kill at any moment leaves the
last complete one. Nothing is pickled. Batches and random numbers are functions of the step, so neither is stored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.checkpoint import is_emcl_state, load_checkpoint, save_checkpoint
from model.durable import sync_file
from model.net import EMCLNet

_PREFIX = "step-"


class WeightAverage:
    """An exponential moving average of ``net``'s weights, used for validation and the finished model.

    Parameters and floating buffers (BatchNorm's statistics) are averaged; the EMCL state, itself a moving average, and
    counters are taken unchanged. The decay after step n is ``min(decay, (1 + n) / (10 + n))``, so that the random start
    is forgotten, and a resumed average equals an uninterrupted one bit for bit. ``torch.optim.swa_utils.AveragedModel``
    does not fit: it copies the whole net, and averages either all buffers or none.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = net
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in _averaged(net).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = _averaged(self.net)
        averages = [self.values[name] for name in current]
        torch._foreach_lerp_(averages, list(current.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the net its averaged weights within the block, and restore its own bit for bit afterwards."""
        current = _averaged(self.net)
        own = {name: tensor.detach().clone() for name, tensor in current.items()}
        try:
            _copy(current, self.values)
            yield
        finally:
            _copy(current, own)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from saved ``values``. Raises ``ValueError`` if they are of another net."""
        if values.keys() != self.values.keys():
            odd = sorted(values.keys() ^ self.values.keys())
            raise ValueError(f"the saved average of the weights is of another net; it differs in {', '.join(odd[:5])}")
        _copy(self.values, values)


def _averaged(net: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in net.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and not is_emcl_state(name)
    }


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation so far, by what its task ranks models by (``model.train.tasks``), after ``step`` steps."""

    step: int
    score: float


@dataclass(kw_only=True)
class Progress:
    """What a run remembers beside tensors. ``skipped`` counts the last steps that were skipped one after another."""

    best: Best | None = None
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The parts of a run that change."""

    net: EMCLNet
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    average: WeightAverage | None = None
    progress: Progress = field(default_factory=Progress)

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
    _save_tensors(_optimiser_tensors(state), partial / "optimiser.safetensors")
    if state.average is not None:
        _save_tensors(state.average.values, partial / "average.safetensors")
    progress_file = partial / "progress.json"
    progress_file.write_text(json.dumps(_progress(state), indent=2) + "\n", encoding="utf-8")
    sync_file(progress_file)
    sync_file(partial)
    if final.exists():  # of a run that was resumed from an older one; the rename needs the place
        shutil.rmtree(final)
    partial.replace(final)
    sync_file(folder)
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old)
    return final


def load_state(state: TrainState, checkpoint: Path) -> None:
    """Fill ``state`` from a checkpoint of the same configuration. Raises ``ValueError`` if it does not fit."""
    state.net.load_state_dict(load_checkpoint(checkpoint / "model.safetensors").state_dict())
    _load_optimiser(state, checkpoint)
    if state.average is not None:
        state.average.load(_read(checkpoint, "average.safetensors"))
    progress = json.loads((checkpoint / "progress.json").read_text(encoding="utf-8"))
    state.scaler.load_state_dict(progress["scaler"])
    state.progress.best = None if progress["best"] is None else _best_of(progress["best"])
    state.progress.skipped = progress["skipped"]


def _best_of(found: Mapping[str, Any]) -> Best:
    """Read what ``_progress`` wrote; earlier releases, which knew one task, called the score ``recall_at_1``."""
    return Best(step=found["step"], score=found["score"] if "score" in found else found["recall_at_1"])


def _progress(state: TrainState) -> dict[str, Any]:
    best = state.progress.best
    return {
        "best": None if best is None else {"step": best.step, "score": best.score},
        "scaler": state.scaler.state_dict(),
        "skipped": state.progress.skipped,
    }


def _load_optimiser(state: TrainState, checkpoint: Path) -> None:
    parameters = state.named_parameters()
    stored: dict[str, dict[str, Tensor]] = {}
    for path, tensor in _read(checkpoint, "optimiser.safetensors").items():
        key, _, name = path.partition("/")
        stored.setdefault(name, {})[key] = tensor
    if stored.keys() - parameters.keys():
        odd = ", ".join(sorted(stored.keys() - parameters.keys())[:5])
        raise ValueError(f"{checkpoint} has optimiser state of {odd}; it is of another configuration")
    for name, tensors in stored.items():
        parameter = parameters[name]
        # Counts of steps stay on the CPU, where the optimisers keep them.
        state.optimiser.state[parameter] = {
            key: value if value.ndim == 0 and key == "step" else value.to(parameter.device)
            for key, value in tensors.items()
        }


def _optimiser_tensors(state: TrainState) -> dict[str, Tensor]:
    """Every tensor that the optimiser keeps; a parameter that never had a gradient has none."""
    tensors = {}
    for name, parameter in state.named_parameters().items():
        for key, value in state.optimiser.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), f"optimiser state {key} of {name} is {type(value)}, only tensors are kept"
            tensors[f"{key}/{name}"] = value
    return tensors


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    sync_file(path)


def _read(checkpoint: Path, name: str) -> dict[str, Tensor]:
    if not (checkpoint / name).is_file():
        raise ValueError(f"{checkpoint} has no {name}; it is damaged or of another configuration")
    return load_file(checkpoint / name)
