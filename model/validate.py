"""Encoding batches, and validation while training: text-conditioned pooling of all pairs, without the EM pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from model.data.base import Batch
from model.metrics import evaluate_similarity
from model.net import EMCLNet
from model.tokenizer import Tokenizer

_TEXTS_AT_ONCE = 64  # bounds the (texts, videos, D) tensor of the pooled videos


def encode_batch(
    net: EMCLNet, tokenizer: Tokenizer, batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode a batch: text (B, D), frame features (B, F, D), mask (B, F). Several processes gather what it returns."""
    ids_BL, mask_BL = tokenizer(batch.captions)
    text_BD = net.encode_text(ids_BL.to(device), mask_BL.to(device))
    frames_BFCHW = torch.from_numpy(batch.frames_BFSSC).to(device).permute(0, 1, 4, 2, 3)
    mask_BF = torch.from_numpy(batch.mask_BF).to(device)
    return text_BD, net.encode_video(frames_BFCHW, mask_BF), mask_BF


def join_padded(parts: list[Tensor]) -> Tensor:
    """Concatenate tensors (B, F, …) of different F, padded with zeros to the longest."""
    longest = max(part.shape[1] for part in parts)
    padded = []
    for part in parts:
        filler = part.new_zeros(part.shape[0], longest - part.shape[1], *part.shape[2:])
        padded.append(torch.cat([part, filler], dim=1))
    return torch.cat(padded)


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
    was_training = net.training
    net.eval()
    with encoding():
        encoded = [encode_batch(net, tokenizer, batch, device) for batch in batches]
    if not encoded:
        net.train(was_training)
        return None
    text_TD = torch.cat([text for text, _, _ in encoded])
    features_VFD = join_padded([features for _, features, _ in encoded])
    mask_VF = join_padded([mask for _, _, mask in encoded])
    rows = [
        net.score_matrix(part, features_VFD, mask_VF, rerank="none") for part in torch.split(text_TD, _TEXTS_AT_ONCE)
    ]
    similarity = torch.cat(rows).float().cpu().numpy()
    net.train(was_training)
    return {
        "text_to_video": evaluate_similarity(similarity).as_dict(),
        "video_to_text": evaluate_similarity(similarity.T).as_dict(),
    }
