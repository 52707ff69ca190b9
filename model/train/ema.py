"""An exponential moving average of a net's weights, to validate with and to ship.

Parameters and floating buffers (BatchNorm's statistics) are averaged; the EMCL state, which is a moving average
already, and counters are taken as they are. The decay starts low, ``min(decay, (1 + n) / (10 + n))`` after n updates,
so that the random start is forgotten; n is the number of steps, which makes a resumed average the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_EMCL_STATE = "emcl."


class WeightAverage:
    """The average of ``net``'s weights over its steps."""

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
        """Give the net its averaged weights within the block, and its own again after it, to the bit."""
        current = _averaged(self.net)
        own = {name: tensor.detach().clone() for name, tensor in current.items()}
        try:
            _copy(current, self.values)
            yield
        finally:
            _copy(current, own)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved ``values``. Raises ``ValueError`` if they are of another net."""
        if values.keys() != self.values.keys():
            odd = sorted(values.keys() ^ self.values.keys())
            raise ValueError(f"the saved average of the weights is of another net; it differs in {', '.join(odd[:5])}")
        _copy(self.values, values)


def _averaged(net: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in net.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and not name.startswith(_EMCL_STATE)
    }


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(values[name])
