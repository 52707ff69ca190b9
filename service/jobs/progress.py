"""How far a job's process is, read from what it writes: progress lines, or a training run's log.

Both are JSON lines in files of the job's folder that grow at their end; a torn last line is read when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.jobs.record import JobProgress

_BLOCK_BYTES = 1 << 20


class GrowingLines:
    """JSON objects appended to a file, each returned once. A file that was cut short is read from its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> Iterator[Mapping[str, Any]]:
        """The objects that were appended since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                while line := file.readline(_BLOCK_BYTES):
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    value = _parse(line)
                    if value is not None:
                        yield value
        except FileNotFoundError:
            return


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """All whole JSON objects of a file of lines; none if there is no file."""
    return list(GrowingLines(path).new())


class PhaseProgress:
    """Progress of ``emcl index``: lines of ``{phase, done, total, note}``."""

    def __init__(self, path: Path) -> None:
        self._lines = GrowingLines(path)

    def latest(self) -> JobProgress | None:
        """The newest progress; ``None`` if there is nothing new."""
        found = None
        for line in self._lines.new():
            note = " · ".join(filter(None, (str(line.get("phase", "")), str(line.get("note", "")))))
            found = JobProgress(done=int(line.get("done", 0)), total=int(line.get("total", 0)), note=note)
        return found


class TrainingProgress:
    """Progress of ``emcl train``: steps, the last loss and the last validation of its ``log.jsonl``."""

    def __init__(self, path: Path, steps: int) -> None:
        self._lines = GrowingLines(path)
        self._steps = steps
        self._loss = self._recall = ""
        self._done = 0

    def latest(self) -> JobProgress | None:
        """The newest progress; ``None`` if there is nothing new."""
        seen = False
        for line in self._lines.new():
            seen = True
            self._done = int(line.get("step", self._done))
            self._steps = int(line.get("steps", self._steps))  # a run that counts epochs knows them only when it runs
            if isinstance(line.get("loss"), int | float):
                self._loss = f"loss {line['loss']:.3f}"
            if (recall := _recall_at_1(line)) is not None:
                self._recall = f"validation R@1 {recall:.1f}"
        if not seen:
            return None
        note = ", ".join(filter(None, (self._loss, self._recall)))
        return JobProgress(done=self._done, total=self._steps, note=note)


class NoProgress:
    """Of a command that says nothing."""

    def latest(self) -> JobProgress | None:
        """Nothing."""
        return None


def _recall_at_1(line: Mapping[str, Any]) -> float | None:
    validation = line.get("validation")
    direction = validation.get("text_to_video") if isinstance(validation, dict) else None
    value = direction.get("R@1", direction.get("r1")) if isinstance(direction, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _parse(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
