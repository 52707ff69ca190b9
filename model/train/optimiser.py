"""The trainer's optimisers. In: a net and an ``OptimiserConfig``. Out: a ``torch.optim.Optimizer``, its rates by step.

``adamw`` is ours: bias correction, weight decay on matrices only, linear warm-up that begins above zero, a cosine that
is scaled to what is left of the run. ``bert-adam`` is the reference's (reference §2.5), with what it does oddly
(reference §8, 13): no bias correction, a first step of rate 0, a cosine that is not scaled, so that the rate jumps down
where the warm-up ends, and weight decay on LayerNorm gains and on the logit scale.

Both keep their state per parameter, in tensors named ``step``, ``exp_avg`` and ``exp_avg_sq``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.net import EMCLNet
from model.train.config import OptimiserConfig

BERT_ADAM_EPSILON = 1e-6
BERT_ADAM_TENSOR_NORM = 1.0  # each gradient tensor is clipped to this alone, after the clip of all together
_ENCODER_PREFIX = "clip."
_PATCH_PROJECTION = "clip.model.visual.conv1.weight"
# The reference spares what these are part of. Its LayerNorms have other names (ln_1, ln_post), so their gains decay.
_BERT_ADAM_UNDECAYED = ("bias", "LayerNorm.bias", "LayerNorm.weight")


class BertAdam(torch.optim.Optimizer):
    """Adam as BERT's authors released it. Groups need ``peak`` (the rate before the schedule) and ``weight_decay``.

    The schedule follows each parameter's own count of steps, as in the reference: a parameter without a gradient stands
    still in it. ``lr`` is for logs: the rate of a parameter that had a gradient in every step.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, beta1: float, beta2: float, warmup_share: float, steps: int | None
    ) -> None:
        defaults = {"beta1": beta1, "beta2": beta2, "warmup_share": warmup_share, "steps": steps, "lr": 0.0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient. Raises ``RuntimeError`` before the run's length is set."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["steps"] is None:
                raise RuntimeError("BertAdam's schedule needs the run's number of steps; call set_learning_rates first")
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        gradient = gradient * (BERT_ADAM_TENSOR_NORM / (gradient.norm() + BERT_ADAM_EPSILON)).clamp(max=1.0)
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(group["beta1"]).add_(gradient, alpha=1 - group["beta1"])
        square.mul_(group["beta2"]).addcmul_(gradient, gradient, value=1 - group["beta2"])
        update = mean / (square.sqrt() + BERT_ADAM_EPSILON)
        if group["weight_decay"]:
            update.add_(parameter, alpha=group["weight_decay"])
        factor = warmup_cosine(float(state["step"]) / group["steps"], group["warmup_share"])
        parameter.add_(update, alpha=-group["peak"] * factor)
        state["step"] += 1


def warmup_cosine(progress: float, warmup_share: float) -> float:
    """Return the reference's factor at ``progress`` (0 at the start, 1 at the end): linear, then an unscaled cosine."""
    if progress < warmup_share:
        return progress / warmup_share
    return 0.5 * (1 + math.cos(math.pi * progress))


def rate_factor(step: int, steps: int, config: OptimiserConfig) -> float:
    """Return what the peak rates are multiplied by at ``step`` (from 0) of ``steps``.

    ``adamw``: linear warm-up that reaches 1 in its last step, then a half cosine down to ``final_share``.
    """
    if config.kind == "bert-adam":
        return warmup_cosine(step / steps, config.warmup_share_or_default)
    warmup_steps, final_share = config.warmup_steps_or_default, config.final_share_or_default
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * done))


def build_optimiser(net: EMCLNet, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Build the optimiser over everything in ``net`` that is trained; call ``set_learning_rates`` before each step.

    With ``train_patches`` off the image tower's patch projection is frozen here, as the reference has it. Raises
    ``ValueError`` if the tower has none.
    """
    if not config.train_patches:
        _freeze_patches(net)
    groups = _groups(net, config)
    if config.kind == "bert-adam":
        return BertAdam(
            groups,
            beta1=config.beta1,
            beta2=config.beta2,
            warmup_share=config.warmup_share_or_default,
            steps=None,
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def _freeze_patches(net: EMCLNet) -> None:
    parameters = dict(net.named_parameters())
    if _PATCH_PROJECTION not in parameters:
        raise ValueError(f"the image tower has no {_PATCH_PROJECTION} to freeze; leave train_patches out")
    parameters[_PATCH_PROJECTION].requires_grad_(False)


def _groups(net: EMCLNet, config: OptimiserConfig) -> list[dict[str, Any]]:
    """Up to four groups: CLIP towers or new modules, with weight decay or without."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith(_ENCODER_PREFIX), _decays(name, parameter, config))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "peak": config.encoder_learning_rate if in_clip else config.learning_rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (in_clip, decays), parameters in groups.items()
    ]


def _decays(name: str, parameter: nn.Parameter, config: OptimiserConfig) -> bool:
    if config.kind == "bert-adam":
        return not any(part in name for part in _BERT_ADAM_UNDECAYED)
    return parameter.ndim >= 2


def set_learning_rates(optimiser: torch.optim.Optimizer, step: int, steps: int, config: OptimiserConfig) -> None:
    """Set the rates of ``step`` (from 0) of a run of ``steps``; nothing else of an optimiser depends on the step."""
    factor = rate_factor(step, steps, config)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
        if isinstance(optimiser, BertAdam):
            group["steps"] = steps
