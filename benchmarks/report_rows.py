"""What a benchmark report consists of: rows, sections, facts about the machine. JSON with unknown keys refused.

A row is one measured thing beside what it is measured against: its floor (the same arithmetic or the same bytes with
nothing around them, taken turn about in the same process) or an alternative. Ratios of a row are what two runs can be
compared by; its times depend on the machine and on who else is using it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from model.config import Config

REPORT_FORMAT = 1
KEPT_SAMPLES = 60
"""Measurements of a row that are written down: enough for an interval of the median, few enough for a small file."""

_DERIVED = ("value", "spread", "floor_value", "ratio", "met")


class Target(Config):
    """What a row is held to: its ratio to the floor, or its value."""

    of: Literal["ratio", "value"] = "ratio"
    sense: Literal["at most", "at least"] = "at most"
    bound: float

    def holds(self, found: float) -> bool:
        """Is ``found`` on the right side of the bound?"""
        return found <= self.bound if self.sense == "at most" else found >= self.bound


class Row(Config):
    """One thing measured. ``samples`` and ``floor_samples`` are in ``unit`` and were taken turn about, pair by pair.

    ``clock`` says what seconds count: processor time of the measuring thread, or wall time (more threads, other
    processes). ``floor`` says in words what the floor is; without one there is no ratio. ``ours`` is False for an
    alternative to this program, whose speed is not this program's doing.
    """

    name: str = Field(min_length=1)
    unit: str = "s"
    clock: Literal["thread", "wall", "none"] = "none"
    samples: tuple[float, ...] = Field(min_length=1)
    floor: str = ""
    floor_samples: tuple[float, ...] = ()
    repeats: int = 0
    target: Target | None = None
    better: Literal["less", "more"] = "less"
    ours: bool = True
    note: str = ""
    facts: dict[str, float | int | str | bool | None] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _without_derived(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if name not in _DERIVED}

    @model_validator(mode="after")
    def _check(self) -> Row:
        if bool(self.floor) != bool(self.floor_samples):
            raise ValueError(f"row {self.name!r}: a floor needs both its name and its samples")
        if self.target is not None and self.target.of == "ratio" and not self.floor_samples:
            raise ValueError(f"row {self.name!r} has a target for its ratio, but no floor")
        return self

    @cached_property
    def value(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)

    @cached_property
    def spread(self) -> float:
        """Distance between the quartiles of the samples."""
        return interquartile(self.samples)

    @cached_property
    def floor_value(self) -> float | None:
        """Median of the floor's samples."""
        return statistics.median(self.floor_samples) if self.floor_samples else None

    @cached_property
    def ratio(self) -> float | None:
        """Median over the floor's median."""
        return self.value / self.floor_value if self.floor_value else None

    @cached_property
    def met(self) -> bool | None:
        """Is the target met? None without one."""
        if self.target is None:
            return None
        found = self.ratio if self.target.of == "ratio" else self.value
        return found is not None and self.target.holds(found)

    def to_json(self) -> dict[str, Any]:
        """The row with what follows from it, samples thinned evenly to ``KEPT_SAMPLES``."""
        body = self.model_dump(mode="json", exclude_defaults=True)
        body["samples"] = _thinned(self.samples)
        body["repeats"] = self.repeats or len(self.samples)
        if self.floor_samples:
            body["floor_samples"] = _thinned(self.floor_samples)
        return {**body, **{name: _short(getattr(self, name)) for name in _DERIVED}}


class SectionResult(Config):
    """What one section found. A section that failed or had nothing to measure on this machine says why."""

    name: str
    title: str
    state: Literal["done", "failed", "skipped"]
    reason: str = ""
    seconds: float = 0.0
    threads: int = 0
    about: str = ""
    rows: tuple[Row, ...] = ()


class Machine(Config):
    """Where a report was made. ``same_as`` compares what decides about speed."""

    processor: str
    cores: int
    instructions: tuple[str, ...]
    memory_gib: float
    accelerator: str = ""
    versions: dict[str, str]
    commit: str
    load_start: tuple[float, float, float]
    load_end: tuple[float, float, float] | None = None

    def differences(self, other: Machine) -> list[str]:
        """What makes the two other machines, in words; empty if they are alike."""
        found = []
        for name in ("processor", "cores", "instructions", "accelerator"):
            if getattr(self, name) != getattr(other, name):
                found.append(f"{name}: {getattr(self, name)} and {getattr(other, name)}")
        if abs(self.memory_gib - other.memory_gib) > 1:
            found.append(f"memory: {self.memory_gib:.0f} and {other.memory_gib:.0f} GiB")
        return found


class Report(Config):
    """A whole run. Reports of different ``kind`` measured different sizes and cannot be compared."""

    format: int = REPORT_FORMAT
    kind: Literal["full", "quick"]
    started: str
    seconds: float
    machine: Machine
    sections: tuple[SectionResult, ...]

    @property
    def rows(self) -> dict[tuple[str, str], Row]:
        """All rows by section and name."""
        return {(section.name, row.name): row for section in self.sections for row in section.rows}

    def to_json(self) -> dict[str, Any]:
        """Everything, rows with what follows from them."""
        body = self.model_dump(mode="json", exclude={"sections"})
        sections = [
            {**section.model_dump(mode="json", exclude={"rows"}), "rows": [row.to_json() for row in section.rows]}
            for section in self.sections
        ]
        return {**body, "sections": sections}

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read ``report.json``. Raises ``ValueError`` that says what is wrong with it."""
        try:
            report = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(
                f"{path} is not there; a report is made by `python -m benchmarks.report --output FOLDER`"
            ) from error
        except ValidationError as error:
            raise ValueError(f"{path} is not a report of this program: {error}") from error
        if report.format != REPORT_FORMAT:
            raise ValueError(
                f"{path} has format {report.format}, this program reads format {REPORT_FORMAT}; make it again"
            )
        return report


def interquartile(samples: Sequence[float]) -> float:
    """Distance between the quartiles; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return third - first


def _thinned(samples: Sequence[float]) -> list[float]:
    step = max(1.0, len(samples) / KEPT_SAMPLES)
    count = min(len(samples), KEPT_SAMPLES)
    return [_short(samples[int(place * step)]) for place in range(count)]


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
