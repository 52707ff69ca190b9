"""The log of a run: OUTPUT/log.jsonl, one JSON object per line, and TensorBoard's files where they are asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """Appends entries of the form ``{"step": N, …}``; what was logged after ``steps_done`` is dropped first.

    Those steps are done again by a resumed run; a torn last line goes with them. Raises ``ValueError`` if TensorBoard
    is asked for and not installed.
    """

    def __init__(self, output: Path, *, steps_done: int, tensorboard: bool) -> None:
        self.path = output / "log.jsonl"
        _cut(self.path, steps_done)
        self._board = _open_board(output / "tensorboard", steps_done) if tensorboard else None

    def write(self, step: int, **entry: Any) -> None:
        """Append ``{"step": step, **entry}``."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **entry}) + "\n")
        if self._board is not None:
            for name, value in _numbers(entry):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def require_tensorboard() -> Any:
    """Import and return ``torch.utils.tensorboard``. Raises ``ValueError`` that says how to install it."""
    try:
        return importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ValueError(
            f"tensorboard: true needs TensorBoard, which is not installed ({error}); install it with "
            "`pip install 'emcl-search[train]'` or leave the setting out"
        ) from error


def _open_board(folder: Path, steps_done: int) -> Any:
    # purge_step hides what a killed run wrote after the checkpoint.
    return require_tensorboard().SummaryWriter(str(folder), purge_step=steps_done + 1)


def _numbers(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _cut(log: Path, steps_done: int) -> None:
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if entry["step"] <= steps_done:
            kept.append(line + "\n")
    log.write_text("".join(kept), encoding="utf-8")
