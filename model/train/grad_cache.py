"""Encoding batches, at once or with gradient caching (GradCache, arXiv 2101.06983): large batches in little memory.

In: a function that encodes a batch. Out: its features, and a ``backward`` that takes the loss's gradient at them to the
parameters. With chunks, features are first computed without a graph, chunk by chunk; in ``backward`` each chunk is
encoded again, now with a graph, under the random state that it had the first time. Both ways give the same gradients,
as long as a clip's features do not depend on the others of its chunk (BatchNorm by batch statistics breaks that).

Which tensors a batch is encoded to is the task's affair (``model.train.tasks``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from model.clip.tokenizer import Tokenizer
from model.data.batches import Batch, frames_for, pad_frames
from model.net import EMCLNet

Encode: TypeAlias = Callable[[Batch], tuple[Tensor, ...]]  # tensors of B rows each, such as texts and frame features


@dataclass(frozen=True, kw_only=True)
class PlainEncoding:
    """Features of a batch that was encoded at once; the graph is kept."""

    features: tuple[Tensor, ...]

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Add to the parameters' gradients those of a loss with these gradients at the features. Once."""
        torch.autograd.backward(self.features, gradients)


@dataclass(frozen=True, kw_only=True)
class CachedEncoding:
    """Features of a batch that was encoded in chunks, without a graph; the random state of each chunk is kept."""

    features: tuple[Tensor, ...]
    encode: Encode
    chunks: list[Batch]
    states: list[_RandomState]

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Add to the parameters' gradients those of a loss with these gradients at the features."""
        start = 0
        for chunk, state in zip(self.chunks, self.states, strict=True):
            rows = slice(start, start + len(chunk.captions))
            with state.restored():
                features = self.encode(chunk)
            torch.autograd.backward(features, [gradient[rows] for gradient in gradients])
            start = rows.stop


@dataclass(frozen=True, kw_only=True)
class _RandomState:
    """torch's random state on the CPU and on one GPU."""

    device: torch.device
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> _RandomState:
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device=device, cpu=torch.get_rng_state(), cuda=cuda)

    @contextmanager
    def restored(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[] if self.cuda is None else [self.device]):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield


def encode_batch(
    net: EMCLNet, tokenizer: Tokenizer, batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode a batch: text (B, D), frame features (B, F, D), mask (B, F); F is what ``frames_for`` says."""
    batch = pad_frames(batch, frames_for(net.config, batch.mask_BF.shape[1]))
    ids_BL, mask_BL = tokenizer(batch.captions)
    text_BD = net.encode_text(ids_BL.to(device), mask_BL.to(device))
    frames_BFCHW = torch.from_numpy(batch.frames_BFHWC).to(device).permute(0, 1, 4, 2, 3)
    mask_BF = torch.from_numpy(batch.mask_BF).to(device)
    return text_BD, net.encode_video(frames_BFCHW, mask_BF), mask_BF


def encode_for_loss(
    encode: Encode, batch: Batch, *, chunk_size: int | None, device: torch.device
) -> PlainEncoding | CachedEncoding:
    """Encode a batch at once, or in chunks of ``chunk_size`` clips where it is larger than that."""
    if chunk_size is None or chunk_size >= len(batch.captions):
        return PlainEncoding(features=encode(batch))
    chunks = list(_split(batch, chunk_size))
    states, encoded = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_RandomState.now(device))
            encoded.append(encode(chunk))
    return CachedEncoding(
        features=tuple(torch.cat(parts) for parts in zip(*encoded, strict=True)),
        encode=encode,
        chunks=chunks,
        states=states,
    )


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.captions), size):
        rows = slice(start, start + size)
        yield replace(
            batch,
            frames_BFHWC=batch.frames_BFHWC[rows],
            mask_BF=batch.mask_BF[rows],
            captions=batch.captions[rows],
            clip_ids=batch.clip_ids[rows],
        )
