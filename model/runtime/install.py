"""From wishes to a model that computes: choose a runtime for a loaded net, and put it in place.

In: an fp32 net with its fingerprint. Out: the same net, whose towers are computed by the chosen runtime.

Shape suffixes: B texts, L tokens, N images, C colour, H height, W width, D channels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from model.clip.towers import ClipTowers, TowerRunner
from model.net import EMCLNet
from model.runtime.choose import (
    ExportKind,
    Offers,
    PrecisionWish,
    Runtime,
    RuntimeChoice,
    RuntimeUnavailableError,
    RuntimeWish,
    Tower,
    choose,
    machine_of,
    processor,
)
from model.runtime.packed import can_pack, pack
from model.runtime.store import ExportStore

logger = logging.getLogger(__name__)

TEXT_STEP = 8


def install_runtime(
    net: EMCLNet, store: ExportStore, *, wish: RuntimeWish, precision: PrecisionWish, device: torch.device
) -> RuntimeChoice:
    """Choose a runtime and let it compute the towers of ``net``, which must be in fp32, on ``device``.

    Raises ``RuntimeUnavailableError`` for a wish that cannot be fulfilled, and ``ExportError`` for a damaged export
    that was asked for by name. One that ``auto`` would have taken is passed over with a warning.
    """
    offers: Offers = cache(store.offer)
    choice = choose(wish, precision, machine_of(device), offers, store.fastest_of(processor()))
    exported = {name: tower.runtime for name, tower in choice.towers.items() if tower.runtime in ("onnx", "onnx-int8")}
    runner: TowerRunner | None = None
    if exported:
        try:
            runner = _open_exports(net, store, exported)
        except (ValueError, OSError) as error:
            if wish != "auto":
                raise
            logger.warning("the export cannot be used: %s", error)
            choice = RuntimeChoice.both("torch", "fp32", reason=f"the export is unusable: {error}")
    runtimes = {tower.runtime for tower in choice.towers.values()}
    if runner is None or "torch" in runtimes:
        net.clip.set_precision(choice.torch_precision)
    if "torch" in runtimes and can_pack(net.clip):
        pack(net.clip)
    if runner is not None:
        net.clip.run_by(runner, keep_weights="torch" in runtimes)
    if runtimes == {"torch-compiled"}:
        compiled = CompiledTowers(net.clip)
        compiled.warm()
        net.clip.run_by(compiled, keep_weights=True)
    logger.info("runtime %s on %s: %s", choice.label, device, choice.reason)
    return choice


def _open_exports(net: EMCLNet, store: ExportStore, exported: Mapping[Tower, Runtime]) -> TowerRunner:
    """The towers ``exported`` by their exports, the others by PyTorch."""
    from model.runtime.onnx import OnnxTowers

    runners: dict[Tower, TowerRunner] = {"text": net.clip, "image": net.clip}
    opened: dict[Runtime, TowerRunner] = {}
    for tower, runtime in exported.items():
        if runtime not in opened:
            kind: ExportKind = "onnx-int8" if runtime == "onnx-int8" else "onnx"
            files = store.verified_files(kind)
            if not files:
                raise RuntimeUnavailableError(
                    f"{store.path_of(kind)} names no files; export again: {store.command(kind)}"
                )
            wanted = {name: path for name, path in files.items() if exported.get(name) == runtime}
            opened[runtime] = OnnxTowers(wanted, trims_text=net.clip.trims_text, one_by_one=kind == "onnx-int8")
        runners[tower] = opened[runtime]
    return runners["text"] if runners["text"] is runners["image"] else EachTower(runners["text"], runners["image"])


class EachTower:
    """Another runtime for texts than for images."""

    def __init__(self, text: TowerRunner, image: TowerRunner) -> None:
        self._text, self._image = text, image

    def image_features(self, pixels_NCHW: Tensor) -> Tensor:
        """Embed normalised pixels: (N, D)."""
        return self._image.image_features(pixels_NCHW)

    def text_features(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Embed texts: (B, D)."""
        return self._text.text_features(ids_BL, lengths_B)


class CompiledTowers:
    """Both towers of ``towers``, in its precision, on its device: few shapes of each, all compiled beforehand.

    One input is a shape of its own, because a lone query is one; more are compiled once, for any number. Texts are
    padded to the next multiple of ``TEXT_STEP`` tokens and compiled once for any such length.
    """

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
