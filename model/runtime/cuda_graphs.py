"""Scoring on a CUDA device: one transfer from pinned memory, then one graph of all kernels, for many queries at once.

Not run on a GPU yet: the tests replace the capture on a CPU; tests marked ``gpu`` cover the rest.

In: the arrays that ``Encoder.score_videos`` gets, features in half precision as they are stored. Out: its arrays. The
pass is some hundred small kernels, whose launches one by one cost more than their work; a CUDA graph launches them
together. A graph and its buffers belong to one shape, so the number of queries is padded to a power of two (queries are
independent, so the padding changes nothing). The most recently used shapes are kept; a shape seen for the first time is
computed without a graph, since it may not recur.

Shape suffixes: Q queries, N candidates, F frames, D channels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from model.net import Rerank, Scores, ScoringNet

    Floats = NDArray[np.float32]
    Replay = Callable[[], Scores]

KEPT_SHAPES = 8
_ALIGNED_BYTES = 256
_WARM_UPS = 3  # calls before a capture, in which libraries choose kernels and allocate their workspaces


class Staging:
    """Named tensors of fixed shapes in one block of memory, here (pinned for a CUDA device) and on ``device``."""

    def __init__(self, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        offsets, size = {}, 0
        for name, (shape, dtype) in shapes.items():
            offsets[name] = size
            size += -(-int(np.prod(shape)) * dtype.itemsize // _ALIGNED_BYTES) * _ALIGNED_BYTES
        self._here = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._there = torch.zeros(size, dtype=torch.uint8, device=device)
        self.here = {name: _part(self._here, offsets[name], *shapes[name]).numpy() for name in shapes}
        self.there = {name: _part(self._there, offsets[name], *shapes[name]) for name in shapes}

    def send(self) -> None:
        """Copy all of it to the device, in order with what is queued there."""
        self._there.copy_(self._here, non_blocking=True)


@dataclass
class _Shape:
    """The buffers of one shape, and what computes on them."""

    staging: Staging
    run: Replay
    uses: int = 0


class GraphScorer:
    """``ScoringNet.score_videos`` by captured graphs. Safe to call from several threads, one at a time computes."""

    def __init__(
        self, net: ScoringNet, device: torch.device, capture: Callable[[Replay], Replay] | None = None
    ) -> None:
        """``capture`` turns a call into one that replays it into the same outputs; default: a CUDA graph."""
        self._net = net
        self._device = device
        self._capture = capture or capture_graph
        self._lock = Lock()
        self._kept: OrderedDict[tuple[Any, ...], _Shape] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @torch.inference_mode()
    def score(
        self,
        text_QD: NDArray[Any],
        features_QNFD: NDArray[Any],
        mask_QNF: NDArray[np.bool_],
        candidate_mask_QN: NDArray[np.bool_] | None,
        rerank: Rerank,
    ) -> tuple[Floats, Floats]:
        """Scores (Q, N) and frame weights (Q, N, F)."""
        queries = len(text_QD)
        with self._lock, _current(self._device):
            shape = self._of(features_QNFD, rerank)
            staging = shape.staging
            arrays = {"text": text_QD, "features": features_QNFD, "mask": mask_QNF, "there": candidate_mask_QN}
            for name, array in arrays.items():
                staging.here[name][:queries] = True if array is None else array
            staging.here["mask"][queries:] = False
            staging.send()
            if shape.uses == 1:  # the second time: it is worth a graph
                shape.run = self._capture(shape.run)
            shape.uses += 1
            scores = shape.run()
            # Copying back waits for the device, so the buffers may be filled anew after it.
            return scores.scores_QN[:queries].cpu().numpy(), scores.frame_weights_QNF[:queries].cpu().numpy()

    def _of(self, features_QNFD: NDArray[Any], rerank: Rerank) -> _Shape:
        queries, candidates, frames, dim = features_QNFD.shape
        padded = 1 << (queries - 1).bit_length()
        half = features_QNFD.dtype == np.float16
        key = (padded, candidates, frames, half, rerank, self._net.emcl.ramp)
        if key not in self._kept:
            while len(self._kept) >= KEPT_SHAPES:
                self._kept.popitem(last=False)
            shapes = {
                "text": ((padded, dim), torch.float32),
                "features": ((padded, candidates, frames, dim), torch.float16 if half else torch.float32),
                "mask": ((padded, candidates, frames), torch.bool),
                "there": ((padded, candidates), torch.bool),
            }
            staging = Staging(shapes, self._device)
            there = staging.there
            self._kept[key] = _Shape(
                staging,
                lambda: self._net.score_videos(there["text"], there["features"], there["mask"], there["there"], rerank),
            )
        self._kept.move_to_end(key)
        return self._kept[key]


def capture_graph(run: Replay) -> Replay:
    """``run`` as a CUDA graph: what is returned launches it and gives the same output tensors each time.

    On the current device, which must be that of ``run``. What other threads do there meanwhile, encode a text say, is
    neither captured nor forbidden.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The stream is given, for PyTorch's own is one for the process, on the device that was the first to capture.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        outputs = run()

    def replay() -> Scores:
        graph.replay()
        return outputs

    return replay


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one: streams, graphs and pinned memory belong to that, not to their tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _part(block: Tensor, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    return block[offset : offset + size].view(dtype).view(shape)
