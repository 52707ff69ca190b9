"""MAML: parameters from which a few gradient steps on a few images solve a task.

    φ_k+1 = φ_k - rate · ∇ CE(support; φ_k)        meta-loss = CE(query; φ_K), averaged over tasks

``order`` 2 is the method; 1 takes the inner gradients for constants, as the widespread PyTorch port does. Batch norm
always normalises by the batch. Inner and outer gradients are those of ``torch.func``.

Shape suffixes: B tasks, S support images, Q query images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

Parameters = dict[str, Tensor]


def convolutional_net(
    channels: int, classes: int, *, filters: int = 32, blocks: int = 4, features: int = 800, relu_first: bool = False
) -> nn.Sequential:
    """Finn's net: ``blocks`` of convolution 3 x 3, batch norm, relu, pooling 2; then a linear layer from ``features``.

    ``relu_first`` puts relu before batch norm, as the PyTorch port does.
    """
    parts: list[nn.Module] = []
    for block in range(blocks):
        parts.append(nn.Conv2d(channels if block == 0 else filters, filters, 3, padding=1))
        norm: list[nn.Module] = [nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
        parts += [*(norm[::-1] if relu_first else norm), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(features, classes))


def loss_of(net: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy under given parameters."""
    logits: Tensor = functional_call(net, dict(parameters), (images,))
    return F.cross_entropy(logits, labels)


def adapt(
    net: nn.Module,
    parameters: Mapping[str, Tensor],
    images_S: Tensor,
    labels_S: Tensor,
    *,
    steps: int,
    rate: float,
    order: Literal[1, 2] = 2,
) -> list[Parameters]:
    """Return the parameters before and after each of ``steps`` inner steps on the support images."""
    gradient = grad(lambda given: loss_of(net, given, images_S, labels_S))
    path: list[Parameters] = [dict(parameters)]
    for _ in range(steps):
        slopes = gradient(path[-1])
        if order == 1:
            slopes = {name: slope.detach() for name, slope in slopes.items()}
        path.append({name: value - rate * slopes[name] for name, value in path[-1].items()})
    return path


def meta_loss(
    net: nn.Module,
    parameters: Mapping[str, Tensor],
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    *,
    steps: int = 5,
    rate: float = 0.01,
    order: Literal[1, 2] = 2,
) -> Tensor:
    """Return the mean over tasks of the query's loss after the inner steps; tensors have a leading dimension B."""
    losses = []
    for images_S, labels_S, images_Q, labels_Q in zip(*support, *query, strict=True):
        adapted = adapt(net, parameters, images_S, labels_S, steps=steps, rate=rate, order=order)[-1]
        losses.append(loss_of(net, adapted, images_Q, labels_Q))
    return torch.stack(losses).mean()


@torch.no_grad()
def accuracy(net: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified right, from 0 to 1."""
    logits: Tensor = functional_call(net, dict(parameters), (images,))
    return float((logits.argmax(dim=1) == labels).float().mean())
