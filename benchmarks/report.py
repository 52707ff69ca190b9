"""Every benchmark in one run, in one report.

    python -m benchmarks.report --output FOLDER                 all of it, in less than 20 minutes on two cores
    python -m benchmarks.report --output FOLDER --quick         tiny sizes: shows that it works, its numbers say nothing
    python -m benchmarks.report --output FOLDER --only "exact search" --only rerank
    python -m benchmarks.report --output FOLDER --save-baseline     and keep the figures as benchmarks/baseline.json

Writes ``report.json``, ``report.md`` and its plots. Ends with 1 if a section failed; a missed target is not a
failure (``--strict`` makes it one). ``python -m benchmarks.compare OLD NEW`` compares two reports.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report_machine, report_sections
from benchmarks.report_page import write_page
from benchmarks.report_rows import Report, SectionResult
from benchmarks.report_sections import SECTIONS, Section

BUDGET_SECONDS = 20 * 60
"""A whole run takes less; a section for which no time is left is reported as failed."""
BASELINE = Path(__file__).with_name("baseline.json")


def run(sections: Sequence[Section], *, quick: bool, say: Callable[[str], None]) -> Report:
    """Measure sections one after the other. Those that fail are in the report with their reason."""
    started, begun = datetime.now(UTC), time.perf_counter()
    machine = report_machine.describe()
    results: list[SectionResult] = []
    for number, section in enumerate(sections, start=1):
        spent = time.perf_counter() - begun
        say(f"[{spent:5.0f} s] {number} of {len(sections)}: {section.title}")
        result = report_sections.measure(section, quick=quick, left_seconds=BUDGET_SECONDS - spent, say=say)
        if result.state != "done":
            say(f"  {result.state}: {result.reason}")
        results.append(result)
    return Report(
        kind="quick" if quick else "full",
        started=started.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - begun, 1),
        machine=machine.model_copy(update={"load_end": os.getloadavg()}),
        sections=tuple(results),
    )


def write_report(report: Report, folder: Path) -> None:
    """``report.json``, ``report.md`` and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(report, folder / "report.json")
    write_page(report, folder)


def write_json(report: Report, path: Path) -> None:
    """The report as JSON, a row on a line."""
    body = report.to_json()
    sections = body.pop("sections")
    head = json.dumps(body, indent=1, ensure_ascii=False).removesuffix("\n}")
    parts = []
    for section in sections:
        rows = ",\n".join(f"   {json.dumps(row, ensure_ascii=False)}" for row in section.pop("rows"))
        parts.append(f'  {json.dumps(section, ensure_ascii=False)[:-1]}, "rows": [\n{rows}\n  ]}}')
    path.write_text(f'{head},\n "sections": [\n' + ",\n".join(parts) + "\n ]\n}\n", encoding="utf-8")


def chosen(names: Sequence[str]) -> tuple[Section, ...]:
    """The sections of these names, or all. Raises ``ValueError`` for a name that is none."""
    known = [section.name for section in SECTIONS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no section {unknown[0]!r}; there are: {', '.join(known)}")
    return tuple(section for section in SECTIONS if not names or section.name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the report goes")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, at most two minutes")
    parser.add_argument("--only", action="append", default=[], metavar="SECTION", help="this section; may be repeated")
    parser.add_argument("--save-baseline", action="store_true", help=f"also write {BASELINE.name} beside this program")
    parser.add_argument("--strict", action="store_true", help="end with 1 if a target is missed")
    given = parser.parse_args(arguments)
    if given.save_baseline and (given.quick or given.only):
        parser.error("a baseline is a whole run: leave out --quick and --only")
    try:
        sections = chosen(given.only)
    except ValueError as error:
        parser.error(str(error))
    report = run(sections, quick=given.quick, say=lambda line: print(line, flush=True))
    write_report(report, given.output)
    failed = [section.title for section in report.sections if section.state == "failed"]
    missed = [name for (_, name), row in report.rows.items() if row.met is False]
    print(f"{report.seconds:.0f} s; report: {given.output / 'report.md'}")
    print(f"targets missed: {'; '.join(missed) or 'none'}")
    if failed:
        print(f"FAILED: {'; '.join(failed)}", file=sys.stderr)
    elif given.save_baseline:
        write_json(report, BASELINE)
    return 1 if failed or (given.strict and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
