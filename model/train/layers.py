"""What a training changes in the layers of a net before it starts: gradient checkpointing, and BatchNorm's mode.

BatchNorm by batch statistics makes each clip's features depend on all that are encoded with it. With chunks or with
several processes those would be the chunk or the share, other numbers than of the whole batch, and the running
statistics would move once per chunk. So that is refused; ``batch_norm: running`` uses the running statistics as they
are, as fine-tuning does, and then chunks and processes are exact.
"""

from __future__ import annotations

import logging

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.net import EMCLNet
from model.train.config import TrainConfig

logger = logging.getLogger(__name__)


def prepare_layers(net: EMCLNet, config: TrainConfig, processes: int) -> None:
    """Switch on what ``config`` asks for. Raises ``ValueError`` for what this net cannot do exactly."""
    norms = _batch_norms(net)
    if config.batch_norm == "running" and not norms:
        raise ValueError("batch_norm: running is for towers with BatchNorm layers, and this model has none; drop it")
    if norms and config.batch_norm == "batch" and (processes > 1 or config.chunk_size is not None):
        cause = f"{processes} processes" if processes > 1 else f"chunk_size {config.chunk_size}"
        raise ValueError(
            f"this model has {len(norms)} BatchNorm layers, whose batch statistics would differ with {cause}, and the "
            "gradients with them; train in one process without chunk_size, or set batch_norm: running"
        )
    if config.gradient_checkpointing:
        _checkpoint_blocks(net)


def training_mode(net: EMCLNet, config: TrainConfig) -> None:
    """Put the net into training mode, but for BatchNorm layers that shall use their running statistics."""
    net.train()
    if config.batch_norm == "running":
        for norm in _batch_norms(net):
            norm.eval()


def _batch_norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def _checkpoint_blocks(net: EMCLNet) -> None:
    """Let the towers' blocks and those of the temporal transformer compute their activations again when needed."""
    visual = net.clip.model.visual
    if type(visual).__name__ == "ModifiedResNet":
        raise ValueError(
            "gradient_checkpointing works on the blocks of transformers, and the image tower is a ResNet; leave it "
            "out, and use batch_norm: running with chunk_size to save memory"
        )
    net.clip.model.set_grad_checkpointing(True)
    blocks = getattr(net.temporal, "blocks", None)
    if blocks is not None:
        blocks.grad_checkpointing = True
