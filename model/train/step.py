"""One optimisation step of a training and its loss, in one process or in several that share the batch.

In: this process's share of a batch. Out: updated weights, and a ``StepResult``. The loss is that of the whole gathered
batch, and the gradients are its exact gradients, whatever the number of processes or chunks:

    encode the share (model.train.grad_cache) → gather all features → loss, the same on every process
    → gradient at this share's features → back through the encoders → sum over the processes → clip → optimiser

Gradients of parameters that only the loss reads (the logit scale) arise on every process alike, so each process
contributes 1/W of them.

What is encoded and what the loss is are the task's (``model.train.tasks``). Random layers of the loss, such as a head's
dropout, draw the same numbers on every process. With a frozen encoder nothing goes back through it.

Shape suffixes: B clips of the global batch, S clips of this process, F frames, D channels.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.data.batches import Batch, frames_for, pad_frames
from model.emcl.diagnostics import EMCLDiagnostics, diagnose
from model.train.config import TrainConfig
from model.train.distributed import World
from model.train.grad_cache import encode_for_loss
from model.train.optimiser import set_learning_rates
from model.train.state import TrainState
from model.train.tasks import Task

MAX_LOG_SCALE = math.log(100)  # CLIP's bound on the logit scale, kept by the reference
# fp16: the scaler starts at 2^16 and halves at each skipped step; after as many it has nothing left to give.
MAX_SKIPPED_IN_A_ROW = 24
# Which random numbers the loss draws, where the encoders of process N draw stream N.
_LOSS_STREAM = 1 << 16
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingDivergedError(ValueError):
    """The loss or its gradient is not finite. The message names the step and the clips of its batch."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """``skipped``: fp16 gradients overflowed, the weights stayed. ``emcl`` only if it was asked for and joint."""

    loss: float
    skipped: bool = False
    emcl: EMCLDiagnostics | None = None


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    """The whole batch's features, leaves of the loss's graph; ``rows`` are those of this process."""

    features: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    identities_B2: Tensor | None
    rows: slice


def arithmetic(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which the encoders run: autocast, and on a CPU the attention kernel that trains fastest."""
    stack = ExitStack()
    if config.precision != "fp32":
        stack.enter_context(torch.autocast(device.type, _AUTOCAST[config.precision]))
    stack.enter_context(_attention(device))
    return stack


def _attention(device: torch.device) -> AbstractContextManager[Any]:
    # For the few tokens of a small image the flash kernel's backward costs more than all products together.
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else ExitStack()


class Stepper:
    """Takes the steps of a run. ``steps`` is the length of the whole run, which the learning rates follow."""

    def __init__(self, config: TrainConfig, state: TrainState, task: Task, world: World, *, steps: int) -> None:
        self.config = config
        self.state = state
        self.task = task
        self.world = world
        self.steps = steps
        self.net = state.net

    def step(self, number: int, share: Batch, *, with_diagnostics: bool = False) -> StepResult:
        """Do step ``number`` (from 0). Raises ``TrainingDivergedError`` on every process."""
        set_learning_rates(self.state.optimiser, number, self.steps, self.config.optimiser)
        self._set_ramp(number)
        # Random layers draw from a function of the step, so that a resumed run draws the same.
        _draw_from(self.config.seed, number, self.world.rank)
        loss, emcl = self.gradients(number, share, with_diagnostics=with_diagnostics)
        skipped = self._move(number, share)
        if self.state.average is not None and not skipped:
            self.state.average.update(number)
        return StepResult(loss=loss, skipped=skipped, emcl=emcl)

    def _set_ramp(self, number: int) -> None:
        ramp = self.config.emcl_ramp_steps
        self.task.emcl.ramp = min(1.0, number / ramp) if ramp else 1.0

    def gradients(self, number: int, share: Batch, *, with_diagnostics: bool) -> tuple[float, EMCLDiagnostics | None]:
        """Compute the loss of the whole batch and put its gradients on the parameters."""
        header = self.world.exchange([len(share.captions), share.mask_BF.shape[1]])
        share = pad_frames(share, frames_for(self.net.config, max(frames for _, frames in header)))
        encoding = encode_for_loss(self._encode, share, chunk_size=self.config.chunk_size, device=self.world.device)
        gathered = self._gather(share, encoding.features, [count for count, _ in header])
        rows: list[Tensor] = []
        with _seen_rows(self.task.emcl, rows) if with_diagnostics else ExitStack():
            if self.config.task != "retrieval":  # whose loss draws nothing
                _draw_from(self.config.seed, number, _LOSS_STREAM)
            loss = self._loss(gathered)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", number, share)
        scaled: Tensor = self.state.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        self._divide_what_all_have()
        if self.config.train_encoder:
            gradients = [tensor.grad for tensor in gathered.features]
            with _attention(self.world.device):  # checkpointed blocks run forward again here
                encoding.backward([gradient[gathered.rows] for gradient in gradients if gradient is not None])
        self.world.sum_in_place(p.grad for p in self.net.parameters() if p.grad is not None)
        return value, diagnose(self.task.emcl, rows[0]) if rows else None

    def _encode(self, batch: Batch) -> tuple[Tensor, ...]:
        with (
            arithmetic(self.config, self.world.device),
            torch.set_grad_enabled(self.config.train_encoder and torch.is_grad_enabled()),
        ):
            return self.task.encode(batch, self.world.device)

    def _gather(self, share: Batch, features: tuple[Tensor, ...], counts: list[int]) -> _Gathered:
        world = self.world
        start = sum(counts[: world.rank])
        identities_B2 = None
        if self.config.duplicates == "ignore":
            identities_B2 = world.gather_rows(torch.from_numpy(share.identities).to(world.device), counts)
        return _Gathered(
            features=tuple(
                world.gather_rows(tensor, counts).requires_grad_(self.config.train_encoder) for tensor in features
            ),
            targets=tuple(world.gather_rows(tensor.to(world.device), counts) for tensor in self.task.targets(share)),
            identities_B2=identities_B2,
            rows=slice(start, start + counts[world.rank]),
        )

    def _loss(self, gathered: _Gathered) -> Tensor:
        return self.task.loss(gathered.features, gathered.targets, gathered.identities_B2)

    def _divide_what_all_have(self) -> None:
        """Every process has the whole gradient of the loss's own parameters now; their sum must be it once."""
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.world.size

    def _move(self, number: int, share: Batch) -> bool:
        """Apply the gradients; returns whether the scaler found them to overflow and left the weights alone."""
        state, optimiser = self.state, self.state.optimiser
        state.scaler.unscale_(optimiser)
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), self.config.optimiser.clip_norm))
        if not (math.isfinite(norm) or state.scaler.is_enabled()):
            raise self._diverged(f"the gradient's norm is {norm}", number, share)
        scale = state.scaler.get_scale()
        state.scaler.step(optimiser)  # does nothing if unscale_ met an infinity
        state.scaler.update()
        skipped = state.scaler.get_scale() < scale
        optimiser.zero_grad()
        if self.config.train_encoder:
            with torch.no_grad():
                self.net.clip.logit_scale.clamp_(max=MAX_LOG_SCALE)
        state.progress.skipped = state.progress.skipped + 1 if skipped else 0
        if state.progress.skipped > MAX_SKIPPED_IN_A_ROW:
            times = f"the fp16 gradients overflowed in {state.progress.skipped} steps one after another"
            raise self._diverged(times, number, share)
        return skipped

    def _diverged(self, what: str, number: int, share: Batch) -> TrainingDivergedError:
        names = ", ".join(self.world.gather_texts(share.clip_ids))
        return TrainingDivergedError(
            f"{what} at step {number}; lower the learning rates or look at the clips of this batch: {names}"
        )


def _draw_from(*place: int) -> None:
    """Let random layers draw from a function of these numbers."""
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))


def _seen_rows(emcl: nn.Module, rows: list[Tensor]) -> AbstractContextManager[Any]:
    """Within the context, append the rows of every EM pass, (N, D), to ``rows``."""

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        rows.append(arguments[0].detach()[0])

    return emcl.register_forward_pre_hook(keep)  # its handle removes the hook at the end of a with block
