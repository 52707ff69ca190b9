"""Encoding batches, and validation while training: text-conditioned pooling of all pairs, without the EM pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.clip.tokenizer import Tokenizer
from model.data.base import Batch
from model.evaluate.metrics import evaluate_similarity
from model.evaluate.pairwise_scores import score_all_pairs
from model.net import EMCLNet


def frames_for(net: EMCLNet, frames: int) -> int:
    """How many frames a batch with at most ``frames`` real ones is padded to.

    Under the pooling's mask ``after`` padding takes part in the result, so there it is always the reference's number.
    """
    return max(frames, net.config.sampling.max_frames) if net.config.pooling.mask == "after" else frames


def pad_frames(batch: Batch, frames: int) -> Batch:
    """Append masked, black frames until there are ``frames``; a batch that has them comes back as it is."""
    missing = frames - batch.mask_BF.shape[1]
    if not missing:
        return batch
    return replace(
        batch,
        frames_BFSSC=np.pad(batch.frames_BFSSC, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))),
        mask_BF=np.pad(batch.mask_BF, ((0, 0), (0, missing))),
    )


def encode_batch(
    net: EMCLNet, tokenizer: Tokenizer, batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode a batch: text (B, D), frame features (B, F, D), mask (B, F); F is what ``frames_for`` says."""
    batch = pad_frames(batch, frames_for(net, batch.mask_BF.shape[1]))
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
