"""One optimisation step of a training and its loss, in one process or in several that share the batch.

In: this process's share of a batch. Out: updated weights, and a ``StepResult``. The loss is that of the whole gathered
batch, and the gradients are its exact gradients, whatever the number of processes or chunks:

    encode the share (model.train.grad_cache) → gather all features → loss, the same on every process
    → gradient at this share's features → back through the encoders → sum over the processes → clip → optimiser

Gradients of parameters that only the loss reads (the logit scale) arise on every process alike, so each process
contributes 1/W of them.

The loss is symmetric InfoNCE over the cosines of the batch (EMCL-Net, reference §2.3 and §2.4): text i and video i are
a pair, the target of their row and column. All others are negatives, except pairs known to belong together: two
captions of one video, or two videos with one caption (``model.heads.losses.known_pairs``). These are left out of the
softmax's denominator, neither pulled nor pushed. The reference treats them as negatives (reference §2.4), and so does
this loss without the items' identities.

Shape suffixes: B clips of the global batch, S clips of this process, F frames, D channels.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.clip.tokenizer import Tokenizer
from model.data.batches import Batch, frames_for, pad_frames
from model.emcl.diagnostics import EMCLDiagnostics, diagnose
from model.heads.losses import known_pairs, symmetric_info_nce
from model.train.config import TrainConfig
from model.train.distributed import World
from model.train.grad_cache import encode_batch, encode_for_loss
from model.train.optimiser import set_learning_rates
from model.train.state import TrainState

if TYPE_CHECKING:
    from model.net import EMCLNet

MAX_LOG_SCALE = math.log(100)  # CLIP's bound on the logit scale, kept by the reference
# fp16: the scaler starts at 2^16 and halves at each skipped step; after as many it has nothing left to give.
MAX_SKIPPED_IN_A_ROW = 24
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def contrastive_loss(
    net: EMCLNet,
    text_BD: Tensor,
    features_BFD: Tensor,
    mask_BF: Tensor,
    *,
    joint_emcl: bool,
    identities_B2: Tensor | None = None,
) -> Tensor:
    """Return the loss of a batch: text-conditioned pooling of all pairs, with the EM pass if ``joint_emcl``, cosine.

    ``identities_B2`` (int64) marks which other pairs of the batch belong together and are not negatives; None makes
    negatives of them all, as the reference does. In training mode the EM pass also moves the EMCL state by its
    momentum, once per call.
    """
    similarity_BB = net.score_matrix(text_BD, features_BFD, mask_BF, rerank="emcl" if joint_emcl else "none")
    known_BB = None if identities_B2 is None else known_pairs(identities_B2)
    return symmetric_info_nce(similarity_BB, net.clip.logit_scale, known_BB)


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

    text_BD: Tensor
    features_BFD: Tensor
    mask_BF: Tensor
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

    def __init__(
        self, config: TrainConfig, state: TrainState, tokenizer: Tokenizer, world: World, *, steps: int
    ) -> None:
        self.config = config
        self.state = state
        self.tokenizer = tokenizer
        self.world = world
        self.steps = steps
        self.net = state.net

    def step(self, number: int, share: Batch, *, with_diagnostics: bool = False) -> StepResult:
        """Do step ``number`` (from 0). Raises ``TrainingDivergedError`` on every process."""
        set_learning_rates(self.state.optimiser, number, self.steps, self.config.optimiser)
        self._set_ramp(number)
        # Random layers draw from a function of the step, so that a resumed run draws the same.
        seed = np.random.SeedSequence([self.config.seed, number, self.world.rank]).generate_state(1)[0]
        torch.manual_seed(int(seed))
        loss, emcl = self._gradients(number, share, with_diagnostics=with_diagnostics)
        skipped = self._move(number, share)
        if self.state.average is not None and not skipped:
            self.state.average.update(number)
        return StepResult(loss=loss, skipped=skipped, emcl=emcl)

    def _set_ramp(self, number: int) -> None:
        ramp = self.config.emcl_ramp_steps
        self.net.emcl.ramp = min(1.0, number / ramp) if ramp else 1.0

    def _gradients(self, number: int, share: Batch, *, with_diagnostics: bool) -> tuple[float, EMCLDiagnostics | None]:
        header = self.world.exchange([len(share.captions), share.mask_BF.shape[1]])
        share = pad_frames(share, frames_for(self.net.config, max(frames for _, frames in header)))
        encoding = encode_for_loss(self._encode, share, chunk_size=self.config.chunk_size, device=self.world.device)
        gathered = self._gather(share, encoding.text_BD, encoding.features_BFD, [count for count, _ in header])
        rows: list[Tensor] = []
        with _seen_rows(self.net.emcl, rows) if with_diagnostics else ExitStack():
            loss = self._loss(gathered)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", number, share)
        scaled: Tensor = self.state.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        self._divide_what_all_have()
        assert gathered.text_BD.grad is not None
        assert gathered.features_BFD.grad is not None
        with _attention(self.world.device):  # checkpointed blocks run forward again here
            encoding.backward(gathered.text_BD.grad[gathered.rows], gathered.features_BFD.grad[gathered.rows])
        self.world.sum_in_place(p.grad for p in self.net.parameters() if p.grad is not None)
        return value, diagnose(self.net.emcl, rows[0]) if rows else None

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with arithmetic(self.config, self.world.device):
            text_SD, features_SFD, _ = encode_batch(self.net, self.tokenizer, batch, self.world.device)
        return text_SD, features_SFD

    def _gather(self, share: Batch, text_SD: Tensor, features_SFD: Tensor, counts: list[int]) -> _Gathered:
        world = self.world
        start = sum(counts[: world.rank])
        identities_B2 = None
        if self.config.duplicates == "ignore":
            identities_B2 = world.gather_rows(torch.from_numpy(share.identities).to(world.device), counts)
        return _Gathered(
            text_BD=world.gather_rows(text_SD, counts).requires_grad_(),
            features_BFD=world.gather_rows(features_SFD, counts).requires_grad_(),
            mask_BF=world.gather_rows(torch.from_numpy(share.mask_BF).to(world.device), counts),
            identities_B2=identities_B2,
            rows=slice(start, start + counts[world.rank]),
        )

    def _loss(self, gathered: _Gathered) -> Tensor:
        return contrastive_loss(
            self.net,
            gathered.text_BD,
            gathered.features_BFD,
            gathered.mask_BF,
            joint_emcl=self.config.joint_emcl,
            identities_B2=gathered.identities_B2,
        )

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


def _seen_rows(emcl: nn.Module, rows: list[Tensor]) -> AbstractContextManager[Any]:
    """Within the context, append the rows of every EM pass, (N, D), to ``rows``."""

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        rows.append(arguments[0].detach()[0])

    return emcl.register_forward_pre_hook(keep)  # its handle removes the hook at the end of a with block
