"""Several processes of one training: who takes part, what they exchange, and what happens when one of them dies.

Started by torchrun (one process per GPU over NCCL, or any number on CPUs over gloo); without it a ``World`` has one
process and every exchange is the identity. Nothing is pickled: tensors travel, and texts as UTF-8 bytes.

Gradients are exact at any number of processes (the reference's are 1/W for the encoders, reference §2.4): each process
computes the loss of the whole gathered batch, sends the gradient of its own rows back through its encoders, and the
parameters' gradients are then summed over the processes.

    WorkerLostError(ConnectionError)    another process ended or stopped answering
    RanksDisagreeError(ValueError)      the processes hold different weights
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.data.batches import Share
from model.encoder import resolve_device

_P = ParamSpec("_P")
_R = TypeVar("_R")

_BUCKET_BYTES = 32 * 2**20  # gradients are summed in parts of this size, which bounds the extra memory


class WorkerLostError(ConnectionError):
    """Another process of this training ended or stopped answering."""


class RanksDisagreeError(ValueError):
    """The processes of a training no longer hold the same weights."""


def _collective(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn errors of the backends about a lost peer into ``WorkerLostError``."""

    @wraps(function)
    def talk(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise WorkerLostError(
                "another process of this training ended or did not answer within timeout_seconds; see its own message, "
                f"then start all of them again with --resume ({str(error).splitlines()[0]})"
            ) from error

    return talk


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run as one of them sees it; ``device`` is where this one computes."""

    rank: int = 0
    size: int = 1
    device: torch.device

    @classmethod
    def alone(cls, device: str = "auto") -> World:
        """One process. Raises ``ValueError`` for a device that is absent."""
        return cls(device=resolve_device(device))

    @property
    def share(self) -> Share:
        """The part of every global batch that this process works on."""
        return Share(rank=self.rank, size=self.size)

    @property
    def is_first(self) -> bool:
        """Whether this process validates, logs and saves."""
        return self.rank == 0

    @_collective
    def exchange(self, values: Sequence[int]) -> list[list[int]]:
        """Return the numbers that every process passed, in order of rank; all pass equally many."""
        if self.size == 1:
            return [list(values)]
        own = torch.tensor(values, dtype=torch.int64, device=self.device)
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(everyone, own)
        return [row.tolist() for row in everyone]

    @_collective
    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Concatenate tensors (counts[rank], …) in order of rank; no gradient flows. Other dimensions are equal."""
        rows = rows.detach()
        if self.size == 1:
            return rows
        # Backends send blocks of one size, and gloo no booleans.
        padded = rows.new_zeros(max(counts), *rows.shape[1:], dtype=torch.uint8 if rows.dtype == torch.bool else None)
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)]).to(rows.dtype)

    @_collective
    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; every process ends with the same bits."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat)
            totals = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, totals, strict=True):
                tensor.copy_(total.view_as(tensor))

    def gather_texts(self, texts: Sequence[str]) -> list[str]:
        """Concatenate lists of texts in order of rank."""
        if self.size == 1:
            return list(texts)
        content = json.dumps(list(texts)).encode()
        counts = [count for (count,) in self.exchange([len(content)])]
        own = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self.device)
        joined = bytes(self.gather_rows(own, counts).tolist())
        parts, start = [], 0
        for count in counts:
            parts += json.loads(joined[start : start + count])
            start += count
        return parts

    @_collective
    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def require_agreement(self, tensors: Iterable[Tensor], step: int) -> None:
        """Raise ``RanksDisagreeError`` on every process unless all hold the same bits in ``tensors``."""
        if self.size == 1:
            return
        sums = [checksum for (checksum,) in self.exchange([_checksum(tensors)])]
        if len(set(sums)) > 1:
            raise RanksDisagreeError(
                f"after step {step} the processes hold different weights (checksums {', '.join(map(str, sums))}), so "
                "they no longer train one model; go back to the last checkpoint with --resume, on equal devices"
            )


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


@torch.no_grad()
def _checksum(tensors: Iterable[Tensor]) -> int:
    """Sum of the bits taken as integers, weighted by place in the list; exact, so the order of summing is free."""
    total = 0
    for place, tensor in enumerate(tensors, start=1):
        content = tensor.detach().contiguous().view(-1)
        bits = content.view(torch.int32) if content.dtype == torch.float32 else content
        total += place * int(bits.long().sum())
    return total % 2**62


def _device_of(device: str, local_rank: int) -> torch.device:
    """The device of a process: with CUDA each process of a machine takes the GPU of its own number."""
    if device.startswith("cuda:"):
        raise ValueError(f"under torchrun every process takes a GPU of its own; pass --device cuda, not {device}")
    chosen = resolve_device(device)
    return resolve_device(f"cuda:{local_rank}") if chosen.type == "cuda" else chosen


@contextmanager
def join_world(device: str = "auto", *, timeout_seconds: float = 1800.0) -> Iterator[World]:
    """Take part in the training that torchrun started, or be alone without it; leaves the group at the end.

    ``timeout_seconds`` is how long an exchange waits for the others. Raises ``ValueError`` for a device that is absent
    or that is not this process's own.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield World.alone(device)
        return
    chosen = _device_of(device, dist.get_node_local_rank())
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    _join("nccl" if chosen.type == "cuda" else "gloo", timeout_seconds)
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=chosen)
    except WorkerLostError:
        raise  # leaving the group in order takes the others, which may not be there any more
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def speaks() -> bool:
    """Whether this process reports to people: the first of its machine; known before and after the group exists."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return True
    return int(dist.get_node_local_rank()) == 0


@_collective
def _join(backend: str, timeout_seconds: float) -> None:
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
