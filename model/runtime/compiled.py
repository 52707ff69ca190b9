"""The towers compiled by ``torch.compile``: few shapes of each, all of them compiled beforehand.

One input is a shape of its own, because that is what a lone query is; more are compiled once, for any number. Texts are
padded to the next multiple of ``TEXT_STEP`` tokens and compiled once for any such length.

Shape suffixes: B texts, L tokens, N images, C colour, H height, W width, D channels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.clip.towers import ClipTowers
from model.runtime.choose import RuntimeUnavailableError

logger = logging.getLogger(__name__)

TEXT_STEP = 8


class CompiledTowers:
    """Both towers of ``towers``, in its precision, on its device."""

    def __init__(self, towers: ClipTowers) -> None:
        self._towers = towers
        self._image: Callable[[Tensor], Tensor] = torch.compile(towers.image_features, dynamic=None)
        self._text: Callable[[Tensor, Tensor], Tensor] = torch.compile(towers.text_features, dynamic=None)

    @torch.inference_mode()
    def warm(self) -> None:
        """Compile every shape that will be met. Raises ``RuntimeUnavailableError`` if this machine cannot compile."""
        started = time.perf_counter()
        towers = self._towers
        device = towers.logit_scale.device
        try:
            for count in (1, 2, 3):  # the third shows PyTorch that any number may come
                length = self._padded(towers.context_length // 2)
                ids_BL = torch.ones(count, length, dtype=torch.int64, device=device)
                self.text_features(ids_BL, torch.full((count,), length, device=device))
                self.image_features(torch.zeros(count, 3, *towers.preprocess.shape[:2], device=device))
        except Exception as error:  # what a compiler raises is a matter of platform and release
            first = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise RuntimeUnavailableError(
                f"torch.compile failed on this machine ({first}); it needs a C++ compiler (apt install g++), or Triton "
                "on CUDA; else use --runtime torch"
            ) from error
        logger.info("compiled the towers in %.0f s", time.perf_counter() - started)

    def _padded(self, length: int) -> int:
        return min(-(-length // TEXT_STEP) * TEXT_STEP, self._towers.context_length)

    def image_features(self, pixels_NCHW: Tensor) -> Tensor:
        """Embed normalised pixels: (N, D)."""
        return self._image(_any_number(pixels_NCHW.contiguous()))  # another layout would be compiled again

    def text_features(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Embed texts: (B, D)."""
        if self._towers.trims_text:
            ids_BL = F.pad(ids_BL, (0, self._padded(ids_BL.shape[1]) - ids_BL.shape[1]))
            torch._dynamo.maybe_mark_dynamic(ids_BL, 1)
        return self._text(_any_number(ids_BL), _any_number(lengths_B))


def _any_number(rows: Tensor) -> Tensor:
    """Mark the first dimension as one that changes, unless it is 1, which is compiled separately."""
    if rows.shape[0] > 1:
        torch._dynamo.maybe_mark_dynamic(rows, 0)
    return rows
