"""A report as Markdown: targets first, then every section's table, then the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.report_plots import draw_all
from benchmarks.report_rows import Machine, Report, Row, SectionResult
from benchmarks.report_sections import quantity

READING = (
    "Times are medians; ± is the distance between the quartiles. A *floor* is the same work with nothing around it, "
    "measured turn about with it in the same process, so that other work on the machine slows both alike: the ratios "
    "are what to compare. `cpu` times are processor time of one thread, `wall` times are what a clock on the wall says."
)

NOT_TOLD = ("series", "segments", "group", "label")
"""Facts that the plots need and the names say already."""
HEAD = "| what | found | ± | clock | repeats | floor | floor's | ratio | target | met |"


def write_page(report: Report, folder: Path) -> None:
    """``report.md`` and its plots in ``folder``."""
    pictures = draw_all(report, folder)
    (folder / "report.md").write_text(page(report, pictures), encoding="utf-8")


def page(report: Report, pictures: list[tuple[str, str]]) -> str:
    """The whole text."""
    lines = [
        "# Benchmarks",
        "",
        *([] if report.kind == "full" else ["**A quick run on tiny sizes: it shows that it works, no more.**", ""]),
        *_facts(report),
        "",
        READING,
        "",
        "## Targets",
        *_targets(report),
    ]
    for file, title in pictures:
        lines += ["", f"![{title}]({file})"]
    for section in report.sections:
        lines += ["", f"## {section.title}", *_section(section)]
    return "\n".join(lines) + "\n"


def _facts(report: Report) -> list[str]:
    machine: Machine = report.machine
    load = " to ".join("/".join(f"{part:.1f}" for part in loads) for loads in _loads(machine))
    facts = {
        "processor": f"{machine.processor}, {machine.cores} cores ({', '.join(machine.instructions) or 'plain'})",
        "memory": f"{machine.memory_gib:.1f} GiB",
        "accelerator": machine.accelerator or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
        "commit": machine.commit or "unknown",
        "begun, duration": f"{report.started}, {report.seconds:.0f} s",
        "load average at start and end (1/5/15 min)": load,
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]


def _loads(machine: Machine) -> Iterator[tuple[float, float, float]]:
    yield machine.load_start
    if machine.load_end is not None:
        yield machine.load_end


def _targets(report: Report) -> list[str]:
    wanted = [(section, row) for section in report.sections for row in section.rows if row.target is not None]
    if not wanted:
        return ["", "None in the sections that ran."]
    met = sum(bool(row.met) for _, row in wanted)
    lines = ["", f"{met} of {len(wanted)} met.", "", "| section | what | found | target | met |", "|---" * 5 + "|"]
    for section, row in wanted:
        lines.append(f"| {section.title} | {row.name} | {_found(row)} | {_target(row)} | {_met(row)} |")
    return lines


def _section(section: SectionResult) -> list[str]:
    lines = ["", section.about] if section.about else []
    if section.state == "skipped":
        return [*lines, "", f"Not measured: {section.reason}"]
    if section.state == "failed":
        last = section.reason.strip().splitlines()[-12:]
        lines += ["", "**Failed:**", "", *(f"    {line}" for line in last)]
    if section.rows:
        lines += ["", HEAD, "|---" * 10 + "|"]
        lines += [_line(row) for row in section.rows]
        notes = [f"* {row.name}: {text}" for row in section.rows if (text := _note(row))]
        lines += ["", *notes] if notes else []
    return [*lines, "", f"{section.seconds:.0f} s, {section.threads} thread{'s' if section.threads > 1 else ''}."]


def _line(row: Row) -> str:
    spread = quantity(row.spread, row.unit) if len(row.samples) > 1 else ""
    floor = "" if row.floor_value is None else quantity(row.floor_value, row.unit)
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    clock = {"thread": "cpu", "wall": "wall", "none": ""}[row.clock]
    repeats = row.repeats or len(row.samples)
    cells = (row.name, quantity(row.value, row.unit), spread, clock, repeats, row.floor, floor, ratio)
    return f"| {' | '.join(str(cell) for cell in cells)} | {_target(row)} | {_met(row)} |"


def _note(row: Row) -> str:
    facts = ", ".join(f"{name} {_fact(value)}" for name, value in row.facts.items() if name not in NOT_TOLD)
    return "; ".join(part for part in (row.note, facts) if part)


def _fact(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _found(row: Row) -> str:
    if row.target is not None and row.target.of == "ratio":
        return f"{row.ratio:.2f} x {row.floor}"
    return quantity(row.value, row.unit)


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    bound = f"{row.target.bound:.3g} x" if row.target.of == "ratio" else quantity(row.target.bound, row.unit)
    return f"{row.target.sense} {bound}"


def _met(row: Row) -> str:
    return {True: "yes", False: "**no**", None: ""}[row.met]
