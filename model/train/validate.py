"""Validation during training: retrieval metrics of text-conditioned pooling over all pairs, without the EM pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model.clip.tokenizer import Tokenizer
from model.data.batches import Batch
from model.emcl.pairwise_scores import score_all_pairs
from model.evaluate.metrics import evaluate_similarity
from model.net import EMCLNet
from model.train.grad_cache import encode_batch


def join_padded(parts: list[Tensor]) -> Tensor:
    """Concatenate tensors (B, F, …) of different F, padded with zeros to the longest."""
    longest = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        filler = part.new_zeros(part.shape[0], longest - part.shape[1], *part.shape[2:])
        padded.append(torch.cat([part, filler], dim=1))
    return torch.cat(padded)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put the net into evaluation mode within the block, and every module of it back into its own mode after it."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def validate(
    net: EMCLNet,
    tokenizer: Tokenizer,
    batches: Iterator[Batch],
    device: torch.device,
    encoding: Callable[[], AbstractContextManager[Any]],
) -> dict[str, dict[str, float]] | None:
    """Return the metrics of both directions, None if there are no validation clips. Leaves the net's mode as it was.

    ``encoding`` makes the context of the encoders, such as autocast. Scores are float32: in bf16 they would tie.
    """
    with evaluating(net):
        with encoding():
            encoded = [encode_batch(net, tokenizer, batch, device) for batch in batches]
        if not encoded:
            return None
        text_TD = torch.cat([text for text, _, _ in encoded])
        features_VFD = join_padded([features for _, features, _ in encoded])
        mask_VF = join_padded([mask for _, _, mask in encoded])
    similarity = score_all_pairs(text_TD, features_VFD, mask_VF, net.config.pooling).numpy()
    return {
        "text_to_video": evaluate_similarity(similarity).as_dict(),
        "video_to_text": evaluate_similarity(similarity.T).as_dict(),
    }
