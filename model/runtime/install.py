"""From wishes to a model that computes: choose a runtime for a loaded net, and put it in place.

In: an fp32 net with its fingerprint. Out: the same net, whose towers are computed by the chosen runtime.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache

import torch

from model.net import EMCLNet
from model.runtime.choose import (
    ExportKind,
    Offers,
    PrecisionWish,
    RuntimeChoice,
    RuntimeUnavailableError,
    RuntimeWish,
    choose,
    machine_of,
)
from model.runtime.packed import can_pack, pack
from model.runtime.store import ExportStore

logger = logging.getLogger(__name__)


def install_runtime(
    net: EMCLNet, store: ExportStore, *, wish: RuntimeWish, precision: PrecisionWish, device: torch.device
) -> RuntimeChoice:
    """Choose a runtime and let it compute the towers of ``net``, which must be in fp32, on ``device``.

    Raises ``RuntimeUnavailableError`` for a wish that cannot be fulfilled, and ``ExportError`` for a damaged export
    that was asked for by name. One that ``auto`` would have taken is passed over with a warning.
    """
    offers: Offers = cache(store.offer)
    choice = choose(wish, precision, machine_of(device), offers)
    if choice.runtime in ("onnx", "onnx-int8"):
        try:
            _install_onnx(net, store, choice)
        except (ValueError, OSError) as error:
            if wish != "auto":
                raise
            logger.warning("the export cannot be used: %s", error)
            choice = replace(choice, runtime="torch", precision="fp32", reason=f"the export is unusable: {error}")
    if choice.runtime in ("torch", "torch-compiled"):
        net.clip.set_precision(choice.torch_precision)
    if choice.runtime == "torch" and can_pack(net.clip):
        pack(net.clip)
    if choice.runtime == "torch-compiled":
        from model.runtime.compiled import CompiledTowers

        compiled = CompiledTowers(net.clip)
        compiled.warm()
        net.clip.run_by(compiled, keep_weights=True)
    logger.info("runtime %s on %s: %s", choice.label, device, choice.reason)
    return choice


def _install_onnx(net: EMCLNet, store: ExportStore, choice: RuntimeChoice) -> None:
    from model.runtime.onnx import OnnxTowers

    kind: ExportKind = "onnx-int8" if choice.runtime == "onnx-int8" else "onnx"
    files = store.verified_files(kind)
    if not files:
        raise RuntimeUnavailableError(f"{store.path_of(kind)} names no files; export again: {store.command(kind)}")
    runner = OnnxTowers(files, trims_text=net.clip.trims_text, one_by_one=kind == "onnx-int8")
    net.clip.run_by(runner, keep_weights=False)
