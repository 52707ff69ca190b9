"""The sections of the report, and the process that measures one of them.

    python -m benchmarks.report_sections MODULE:FUNCTION [--quick]

Each section runs in a process of its own: with the number of threads that it asks for, without the memory that others
left, and so that what ends one badly loses nothing of the others. Rows are printed as JSON as they are found; those
that were found before a failure stay in the report.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.harness import ChildFailedError, NotHereError, Scale, run_child
from benchmarks.report_rows import Row, SectionResult

ROW, DONE, SKIPPED = "row", "done", "skipped"


@dataclass(frozen=True, kw_only=True)
class Section:
    """``run`` is ``module:function`` (scale in, rows out); ``threads`` 0 means every core; ``cap_seconds`` ends it."""

    name: str
    title: str
    run: str
    threads: int
    cap_seconds: float
    about: str

    @property
    def thread_count(self) -> int:
        """Threads that its libraries may use."""
        return self.threads or os.cpu_count() or 1


SECTIONS = (
    Section(
        name="machine",
        title="What the machine can do",
        run="benchmarks.stages:machine",
        threads=0,
        cap_seconds=60,
        about="Matrix products and reading of memory by PyTorch: the floors that all others are made of.",
    ),
    Section(
        name="encoders",
        title="Encoders",
        run="benchmarks.report_glue:encoders",
        threads=0,
        cap_seconds=240,
        about="ViT-B/32 with random weights in every runtime; the floor is the same precision's matrix products.",
    ),
    Section(
        name="exact search",
        title="Exact search",
        run="benchmarks.stages:exact_search",
        threads=0,
        cap_seconds=150,
        about="Every vector is compared with the query. An exact search cannot be faster than its vectors are read.",
    ),
    Section(
        name="rerank",
        title="Reranking",
        run="benchmarks.report_glue:rerank",
        threads=1,
        cap_seconds=120,
        about="From the places of the candidates to their scores, the frame features read from mapped shards.",
    ),
    Section(
        name="gather",
        title="Features of the candidates",
        run="benchmarks.stages:gather",
        threads=1,
        cap_seconds=90,
        about="What reranking reads from the mapped shards.",
    ),
    Section(
        name="decoding",
        title="Decoding",
        run="benchmarks.stages:decoding",
        threads=1,
        cap_seconds=150,
        about="Frames out of a clip. The floor decodes as little as any way can that gives the same frames.",
    ),
    Section(
        name="indexing",
        title="Whole indexing",
        run="benchmarks.report_glue:indexing",
        threads=0,
        cap_seconds=240,
        about="From files to a published index; on two cores it can be no faster than the slower of its two halves.",
    ),
    Section(
        name="whole query",
        title="The whole query",
        run="benchmarks.report_glue:whole_query",
        threads=1,
        cap_seconds=120,
        about="From the first byte of a request to the last of its answer, beside the stages that the answer names.",
    ),
    Section(
        name="growth",
        title="Growth with the number of segments",
        run="benchmarks.growth:measure",
        threads=0,
        cap_seconds=500,
        about="Each size is built and searched in processes of their own; memory is what the kernel counted.",
    ),
    Section(
        name="graphs",
        title="Stage 1 beside graphs",
        run="benchmarks.graphs:measure",
        threads=0,
        cap_seconds=300,
        about="What `--index auto` chooses beside HNSW graphs of FAISS, hnswlib and USearch, where pip installs them.",
    ),
    Section(
        name="service memory",
        title="Memory of the service",
        run="benchmarks.report_glue:service_memory",
        threads=0,
        cap_seconds=300,
        about="Whole stores of two sizes, each opened and searched by the engine in a process of its own.",
    ),
    Section(
        name="alternatives",
        title="Beside what one would otherwise write",
        run="benchmarks.naive:measure",
        threads=0,
        cap_seconds=300,
        about=(
            "The same queries over the same vectors. *Stage 1* is all that the alternatives do. Over HTTP this program "
            "also reranks its 100 candidates by their frames and names the moment, the alternatives do neither: two "
            "lines stand for this program, with reranking and without. All encode the text with the same model."
        ),
    ),
    Section(
        name="accelerator",
        title="On an accelerator",
        run="benchmarks.gpu:measure",
        threads=0,
        cap_seconds=240,
        about="The stages that an accelerator takes over, beside the card's own matrix products.",
    ),
)


def measure(section: Section, *, quick: bool, left_seconds: float, say: Callable[[str], None]) -> SectionResult:
    """Run a section in its own process, within its own time and ``left_seconds``. Never raises for what fails there."""
    rows: list[Row] = []
    ended: dict[str, str] = {}

    def take(line: str) -> None:
        if line.startswith(f'{{"{ROW}":'):
            rows.append(Row.model_validate(json.loads(line)[ROW]))
            say(f"  {row_text(rows[-1])}")

    seconds = 0.0
    try:
        child = run_child(
            "benchmarks.report_sections",
            [section.run, *(["--quick"] if quick else [])],
            thread_count=section.thread_count,
            timeout_seconds=min(section.cap_seconds, left_seconds),
            on_line=take,
        )
        ended, seconds = child.answer, child.seconds
        state, reason = ("skipped", ended[SKIPPED]) if SKIPPED in ended else ("done", "")
    except ChildFailedError as error:
        state, reason = "failed", str(error)
    return SectionResult.model_validate(
        {
            "name": section.name,
            "title": section.title,
            "about": section.about,
            "state": state,
            "reason": reason,
            "seconds": round(seconds, 1),
            "threads": section.thread_count,
            "rows": rows,
        }
    )


def row_text(row: Row) -> str:
    """A row in one line of progress."""
    ratio = "" if row.ratio is None else f", ratio {row.ratio:.2f}"
    met = {True: ", met", False: ", MISSED", None: ""}[row.met]
    return f"{row.name}: {quantity(row.value, row.unit)}{ratio}{met}"


def quantity(value: float, unit: str) -> str:
    """A value with its unit; seconds in the unit that reads best."""
    if unit != "s":
        return f"{value:,.4g} {unit}" if abs(value) < 10_000 else f"{value:,.0f} {unit}"
    for factor, name in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {name}"
    return f"{value * 1e6:.3g} µs"


def main() -> int:
    """Measure one section here; prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="MODULE:FUNCTION", help="what takes the scale and gives rows")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    given = parser.parse_args()
    module, _, name = given.run.partition(":")
    try:
        function: Callable[[Scale], Iterable[Row]] = getattr(importlib.import_module(module), name)
        for row in function(Scale(quick=given.quick)):
            print(json.dumps({ROW: row.to_json()}), flush=True)
    except NotHereError as error:
        print(json.dumps({SKIPPED: str(error)}), flush=True)
        return 0
    print(json.dumps({DONE: given.run}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
