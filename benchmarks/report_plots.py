"""Plots of a report, as SVG: ratios to floors, growth with the number of segments, and what else one would write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report_rows import Report, Row
from model.study.figures import ACCENT, FAINT, INK, TEXT, VIDEO, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROWTH, ALTERNATIVES = "growth", "alternatives"


def draw_all(report: Report, folder: Path) -> list[tuple[str, str]]:
    """Draw what the report has rows for; file names with their titles, in order."""
    made = []
    for name, title, draw in (
        ("ratios.svg", "Every stage beside its floor", _ratios),
        ("growth.svg", "Growth with the number of segments", _growth),
        ("alternatives.svg", "Beside what one would otherwise write", _alternatives),
    ):
        picture = draw(report)
        if picture:
            (folder / name).write_text(picture, encoding="utf-8")
            made.append((name, title))
    return made


def _ratios(report: Report) -> str:
    rows = [row for section in report.sections for row in section.rows if row.ratio and section.name != ALTERNATIVES]
    if not rows:
        return ""
    with drawing(8.0, 0.8 + 0.26 * len(rows)) as figure:
        axes = figure.add_subplot()
        for place, row in enumerate(reversed(rows)):
            assert row.ratio is not None
            colour = {True: ACCENT, False: TEXT, None: VIDEO}[row.met]
            axes.barh(place, row.ratio, color=colour, height=0.62)
            axes.text(row.ratio * 1.04, place, f"{row.ratio:.2f}", va="center", color=INK)
            if row.target is not None and row.target.of == "ratio":
                axes.plot([row.target.bound] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2)
        axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.axvline(1.0, color=FAINT)
        axes.set_xlabel("time over the floor's (black: target; green met, orange missed, blue none set)")
        return to_svg(figure)


def _growth(report: Report) -> str:
    rows = [row for section in report.sections if section.name == GROWTH for row in section.rows]
    series: dict[str, list[Row]] = {}
    for row in rows:
        if "segments" in row.facts and "series" in row.facts:
            series.setdefault(str(row.facts["series"]), []).append(row)
    if not series:
        return ""
    units = list(dict.fromkeys(rows[0].unit for rows in series.values()))
    with drawing(3.6 * len(units), 3.2) as figure:
        for place, unit in enumerate(units, start=1):
            axes = figure.add_subplot(1, len(units), place)
            for name, members in series.items():
                if members[0].unit == unit:
                    _line(axes, name, members)
            axes.set_xscale("log")
            if unit == "s":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
            else:
                axes.set_ylim(bottom=0.0)
            axes.set_xlabel("segments")
            axes.set_ylabel({"s": "seconds"}.get(unit, unit))
            axes.legend(fontsize=7)
        return to_svg(figure)


def _line(axes: Axes, name: str, rows: list[Row]) -> None:
    points = sorted((float(row.facts["segments"] or 0), row.value) for row in rows)
    axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name)


def _alternatives(report: Report) -> str:
    rows = [row for section in report.sections if section.name == ALTERNATIVES for row in section.rows]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.unit == "s" and "group" in row.facts:
            groups.setdefault(str(row.facts["group"]), []).append(row)
    if not groups:
        return ""
    with drawing(8.0, 0.9 * len(groups) + 0.3 * len(rows)) as figure:
        for place, (title, members) in enumerate(groups.items(), start=1):
            axes = figure.add_subplot(len(groups), 1, place)
            values = [1000 * row.value for row in members]
            colours = [ACCENT if row.ours else VIDEO for row in members]
            axes.barh(range(len(members))[::-1], values, color=colours, height=0.6)
            for line, value in zip(range(len(members))[::-1], values, strict=True):
                axes.text(value, line, f" {value:.3g} ms", va="center", color=INK)
            axes.set_yticks(range(len(members))[::-1], [str(row.facts.get("label", row.name)) for row in members])
            axes.margins(x=0.15)
            axes.set_title(title)
        figure.axes[-1].set_xlabel("milliseconds, median (green: this program)")
        return to_svg(figure)
