"""The towers by onnxruntime, on the CPU: two sessions behind ``model.clip.towers.TowerRunner``.

An export in bytes scales its activations by the largest of all that are computed together. Its inputs therefore go one
by one, each text at its own length: what a text's features are must not depend on what else is in the batch. That costs
little, because the matrices of one text or image fill a core already.

Shape suffixes: B texts, L tokens, N images, C colour, H height, W width, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.runtime.choose import RuntimeUnavailableError, has_onnxruntime, missing_onnxruntime


class OnnxTowers:
    """The towers of an export, both or one. Safe to call from several threads."""

    def __init__(self, files: Mapping[Any, Path], *, trims_text: bool, one_by_one: bool) -> None:
        """Open the files ``text`` and ``image``, those that there are, with as many threads as PyTorch has now."""
        if not has_onnxruntime():
            raise missing_onnxruntime("this export")
        self._sessions = {tower: _session(path) for tower, path in files.items()}
        self._takes_lengths = "text" in files and len(self._sessions["text"].get_inputs()) == 2
        self._trims_text = trims_text
        self._one_by_one = one_by_one

    def image_features(self, pixels_NCHW: Tensor) -> Tensor:
        """Embed normalised pixels: (N, D) float32."""
        pixels = np.ascontiguousarray(pixels_NCHW.float().cpu().numpy())
        step = 1 if self._one_by_one else max(1, len(pixels))
        session = self._sessions["image"]
        parts = [session.run(None, {"pixels": pixels[at : at + step]})[0] for at in range(0, len(pixels), step)]
        return torch.from_numpy(np.concatenate(parts))

    def text_features(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Embed texts: (B, D) float32."""
        ids, lengths = ids_BL.cpu().numpy(), lengths_B.cpu().numpy()
        if not self._one_by_one:
            return torch.from_numpy(self._run_text(ids, lengths))
        parts = []
        for row in range(len(ids)):
            width = int(lengths[row]) if self._trims_text else ids.shape[1]
            parts.append(self._run_text(ids[row : row + 1, :width], lengths[row : row + 1]))
        return torch.from_numpy(np.concatenate(parts))

    def _run_text(self, ids: Any, lengths: Any) -> Any:
        inputs = {"ids": np.ascontiguousarray(ids)}
        if self._takes_lengths:
            inputs["lengths"] = lengths
        return self._sessions["text"].run(None, inputs)[0]


def _session(path: Path) -> Any:
    onnxruntime = import_module("onnxruntime")  # of an extra: it may not be here when types are checked
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait for work by spinning would take the cores from decoding, FAISS and PyTorch.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; warnings are about the graph, which users cannot change
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base but Exception
        first = str(error).strip().split("\n", 1)[0]
        raise RuntimeUnavailableError(
            f"onnxruntime {onnxruntime.__version__} cannot open {path} ({first}); export again with `emcl export`"
        ) from error
