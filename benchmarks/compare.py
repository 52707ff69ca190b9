"""Two reports beside each other: what became faster, slower, or differs by no more than noise.

    python -m benchmarks.compare benchmarks/baseline.json FOLDER/report.json

Rows with a floor are compared by their ratio to it, so that a machine that is busier than it was does not look like a
slower program; rows without one by their value. The noise of each row is estimated from its own measurements: medians
of samples drawn from them repeatedly (bootstrap; a thing and its floor are drawn in pairs, as they were measured).
A row is slower if the whole interval of the change is above 1, and bad if the change is also beyond the tolerance
(and the row is this program's doing: neither an alternative to it nor what the machine can do).
Shares and percentages have no noise of time: they are compared by their difference. A target that was met and is missed
now is bad whatever the tolerance, but where time was measured only if the change is beyond noise.
Intervals are so wide that of all rows together one is wrong in one comparison of a hundred. What differs between
two processes of the same program (where its memory is, say) no interval of one run can show: the tolerance is for
that.

Ends with 1 if something is slower (or, where more is better, less), misses a target that it met, or was measured in the
old report and failed in the new one; with 2 if the reports cannot be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from benchmarks.report_rows import Report, Row
from benchmarks.report_sections import quantity

DRAWS = 1000
WRONG_ALARMS = 0.01
"""Comparisons of equal programs in which any row's interval misses 1."""
TOLERANCE = 0.15
FEWEST_SAMPLES = 5
"""A row with fewer has no spread of its own worth the name; its change has to exceed twice the tolerance."""
DIFFERENCES = {"share": 0.01, "%": 5.0}
"""Units compared by difference, and what is let pass whatever the tolerance. Recall counts thousands of neighbours. R@1
(%) counts 60 clips of one seed, so that a clip is 1.7 points: three that are nearly tied may change places when a
kernel or a decoder rounds otherwise, which is no other ranking."""
SIZES = ("B/vector", "MiB")
"""Units of what is counted once and hardly varies: the tolerance itself, not twice, stands for the spread."""

Verdict = Literal["faster", "slower", "within noise", "more", "less", "not compared", "missing", "new", "not measured"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row in both reports. ``change`` is new over old (of ratios, where there are floors), with its interval.

    With ``by_difference`` it is new less old. ``missed`` is a target that the old row meets and the new one does not. A
    section that was not measured stands there as a whole, with its ``reason``.
    """

    section: str
    name: str
    verdict: Verdict
    bad: bool = False
    by_difference: bool = False
    missed: bool = False
    reason: str = ""
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan
    old: str = ""
    new: str = ""


def compare(old: Report, new: Report, *, tolerance: float = TOLERANCE, same_machine: bool = True) -> list[Change]:
    """Every row of either report. Times without a floor are compared on the ``same_machine`` only."""
    pairs = [key for key in old.rows if key in new.rows]
    confidence = 1 - WRONG_ALARMS / max(1, len(pairs))
    changes = [_change(key, old.rows[key], new.rows[key], tolerance, confidence, same_machine) for key in pairs]
    failed = {section.name for section in new.sections if section.state == "failed"}
    measured = {section.name for section in new.sections if section.state != "skipped"}
    for section, name in old.rows:
        if (section, name) not in new.rows and section in measured:
            changes.append(Change(section=section, name=name, verdict="missing", bad=section in failed))
    changes += [Change(section=s, name=n, verdict="new") for s, n in new.rows if (s, n) not in old.rows]
    return changes + _not_measured(old, new)


def _not_measured(old: Report, new: Report) -> list[Change]:
    """Sections that were skipped in the new report, or that only the old one has."""
    there = {section.name for section in new.sections}
    reasons = {section.name: section.reason for section in new.sections if section.state == "skipped"}
    reasons |= {section.name: "left out of the new report" for section in old.sections if section.name not in there}
    return [
        Change(section=name, name="the whole section", verdict="not measured", reason=" ".join(reason.split()))
        for name, reason in reasons.items()
    ]


def objections(old: Report, new: Report) -> list[str]:
    """Why two reports should not be compared; empty if they should."""
    notes = []
    if old.kind != new.kind:
        notes.append(f"the reports are of different kinds, {old.kind} and {new.kind}: they measured different sizes")
    return notes + [f"the reports are of different machines: {text}" for text in old.machine.differences(new.machine)]


def _change(
    key: tuple[str, str], old: Row, new: Row, tolerance: float, confidence: float, same_machine: bool
) -> Change:
    by_difference = old.unit in DIFFERENCES
    by_ratio = bool(old.floor_samples and new.floor_samples and old.floor == new.floor) and not by_difference
    change = Change(
        section=key[0],
        name=key[1],
        verdict="not compared",
        by_difference=by_difference,
        old=_told(old, by_ratio),
        new=_told(new, by_ratio),
    )
    if old.unit != new.unit or not (by_ratio or by_difference or same_machine):
        return change
    if by_difference:
        point, low, high = _difference(old, new)
    else:
        point, low, high = _widened(old, new, by_ratio, tolerance, confidence)
    verdict = _verdict(point, low, high, old)
    worse = verdict in ("slower", "less" if old.better == "more" else "more")
    far = by_difference or (point if old.better == "less" else 1 / point) > 1 + tolerance
    timed = by_ratio or old.unit == "s" or old.unit.endswith("/s")
    missed = _misses_now(old, new) and (worse or not timed)
    bad = old.ours and new.ours and ((worse and far) or missed)
    return replace(change, verdict=verdict, bad=bad, missed=missed, change=point, low=low, high=high)


def _verdict(point: float, low: float, high: float, row: Row) -> Verdict:
    even = 0 if row.unit in DIFFERENCES else 1
    if low <= even <= high:
        return "within noise"
    if row.unit == "s":
        return "slower" if point > even else "faster"
    return "more" if point > even else "less"


def _misses_now(old: Row, new: Row) -> bool:
    """Does the new row miss its target, where the old one is on the right side of the same bound?"""
    target = new.target
    if target is None or (target.of == "ratio" and old.floor != new.floor):
        return False
    return new.met is False and target.holds(_figure(old, target.of == "ratio"))


def _difference(old: Row, new: Row) -> tuple[float, float, float]:
    """New less old, and what either might be off by."""
    point, bound = round(new.value - old.value, 9), DIFFERENCES[old.unit]
    return point, round(point - bound, 9), round(point + bound, 9)


def _widened(old: Row, new: Row, by_ratio: bool, tolerance: float, confidence: float) -> tuple[float, float, float]:
    """New over old, and its interval; wider where there are too few measurements to know their spread."""
    point, low, high = interval(old, new, by_ratio=by_ratio, confidence=confidence)
    if min(len(old.samples), len(new.samples)) >= FEWEST_SAMPLES:
        return point, low, high
    wider = 1 + (tolerance if old.unit in SIZES else 2 * tolerance)
    return point, low / wider, high * wider


def interval(old: Row, new: Row, *, by_ratio: bool, confidence: float) -> tuple[float, float, float]:
    """New over old, and its interval: bootstrap standard error of the logarithm, Student's t."""
    rng = np.random.default_rng(0)
    point = _figure(new, by_ratio) / _figure(old, by_ratio)
    error = float(np.std(np.log(_draws(new, by_ratio, rng)) - np.log(_draws(old, by_ratio, rng))))
    width = math.exp(error * _t(1 - (1 - confidence) / 2, max(1, min(len(old.samples), len(new.samples)) - 1)))
    return point, point / width, point * width


def _t(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by the first two terms of its expansion around the normal one (Abramowitz 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _figure(row: Row, by_ratio: bool) -> float:
    found = row.ratio if by_ratio else row.value
    assert found is not None
    return max(found, sys.float_info.min)


def _draws(row: Row, by_ratio: bool, rng: np.random.Generator) -> Floats:
    """Medians (or ratios of medians) of samples drawn with replacement, ``(DRAWS,)``."""
    samples = np.maximum(np.array(row.samples), sys.float_info.min)
    chosen = rng.integers(0, len(samples), (DRAWS, len(samples)))
    medians: Floats = np.median(samples[chosen], axis=1)
    if not by_ratio:
        return medians
    floors = np.maximum(np.array(row.floor_samples), sys.float_info.min)
    if len(floors) != len(samples):
        chosen = rng.integers(0, len(floors), (DRAWS, len(floors)))
    ratios: Floats = medians / np.median(floors[chosen], axis=1)
    return ratios


def _told(row: Row, by_ratio: bool) -> str:
    return f"{row.ratio:.2f} x floor" if by_ratio else quantity(row.value, row.unit)


def table(changes: Sequence[Change]) -> str:
    """Markdown, what became worse first."""
    order: dict[str, int] = {"slower": 0, "missing": 1, "not measured": 2, "less": 3, "more": 4, "faster": 5}
    lines = ["| section | what | old | new | change | interval | verdict |", "|---" * 7 + "|"]
    for change in sorted(changes, key=lambda one: (not one.bad, order.get(one.verdict, 6))):
        form = "+.3g" if change.by_difference else ".2f"
        number = "" if math.isnan(change.change) else f"{change.change:{form}}"
        between = "" if math.isnan(change.low) else f"{change.low:{form}} to {change.high:{form}}"
        verdict = _said(change)
        lines.append(
            f"| {change.section} | {change.name} | {change.old} | {change.new} | {number} | {between} | {verdict} |"
        )
    return "\n".join(lines)


def _said(change: Change) -> str:
    if change.verdict == "not measured":
        return f"not measured: {change.reason}"
    said = f"{change.verdict}, misses its target now" if change.missed else change.verdict
    if change.bad:
        return f"**{said}**"
    return f"{said}, within tolerance" if change.verdict == "slower" else said


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two files; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="report.json, or benchmarks/baseline.json")
    parser.add_argument("new", type=Path, help="report.json")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="change that is let pass (0.15: 15 percent)")
    parser.add_argument(
        "--anyway",
        action="store_true",
        help="also of different kinds or machines; then only what has a floor counts, and shares",
    )
    given = parser.parse_args(arguments)
    if not given.tolerance >= 0:
        parser.error(f"the tolerance is {given.tolerance}, expected 0 or more")
    try:
        old, new = Report.read(given.old), Report.read(given.new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    against = objections(old, new)
    if against and not given.anyway:
        print("\n".join([*against, "compare their ratios to floors with --anyway"]), file=sys.stderr)
        return 2
    changes = compare(old, new, tolerance=given.tolerance, same_machine=not against)
    print(table(changes))
    bad = [change for change in changes if change.bad]
    absent = sum(change.verdict == "not measured" for change in changes)
    print(
        f"\n{len(changes) - absent} rows, {len(bad)} worse: beyond noise and a tolerance of {given.tolerance:.0%}, "
        f"or a target missed that was met; sections not measured: {absent}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
