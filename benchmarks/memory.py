"""What a segment costs a running service in memory, beside what its index takes.

    python -m benchmarks.memory                        10,000, 100,000 and 300,000 segments
    python -m benchmarks.memory --segments 10000 1000000

Stores of ``benchmarks.million`` are written and published; a process of its own opens each with the service's engine
and asks 300 queries, ``RUNS`` times. Compared is the memory of the process's own (``RssAnon``) while it serves: what is
mapped from files (features, places) the system may take back at any time, and is in the JSON beside it. It differs by
some MiB from one process to the next; the median of the runs counts, and their spread is reported, also in bytes
a segment. Wanted: at most 64 bytes a segment beside the index.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.million import measure, run_phase

MIB = 2**20
RUNS = 5


def growth(sizes: list[int], folder: Path) -> dict[str, Any]:
    """Figures of each size, and what each segment cost between one size and the next."""
    found = []
    for segments in sorted(sizes):
        run = measure(segments, folder / str(segments), lambda line: print(line[:160], flush=True))
        report = run["publish"]["indexes"]["videos"]
        runs = [run["serve"], *(run_phase("serve", segments, folder / str(segments)) for _ in range(RUNS - 1))]
        mib = [one["own_mib"] for one in runs]
        found.append(
            {
                "segments": segments,
                "index": report["factory"],
                "index_bytes": round(report["bytes_per_vector"] * segments),
                "own_bytes": round(median(mib) * MIB),
                "own_bytes_apart": round((max(mib) - min(mib)) * MIB),
                "file_bytes": round(median(one["files_mib"] for one in runs) * MIB),
            }
        )
    steps = []
    for less, more in pairwise(found):
        added = more["segments"] - less["segments"]
        own = (more["own_bytes"] - less["own_bytes"]) / added
        index = (more["index_bytes"] - less["index_bytes"]) / added
        steps.append(
            {
                "from": less["segments"],
                "to": more["segments"],
                "own_bytes_per_segment": round(own, 1),
                "index_bytes_per_segment": round(index, 1),
                "beside_the_index": round(own - index, 1),
                "runs_apart": round(max(less["own_bytes_apart"], more["own_bytes_apart"]) / added, 1),
            }
        )
    return {"sizes": found, "steps": steps}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, nargs="+", default=[10_000, 100_000, 300_000])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = growth(given.segments, Path(temporary))
    for step in found["steps"]:
        print(
            f"{step['from']} to {step['to']} segments: {step['own_bytes_per_segment']} bytes each, of which the index "
            f"{step['index_bytes_per_segment']}: {step['beside_the_index']} beside it (at most 64 wanted; runs of one "
            f"store are up to {step['runs_apart']} apart)"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
