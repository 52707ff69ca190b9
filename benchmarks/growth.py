"""Time and memory as the number of segments grows, each size built and searched in processes of their own.

    python -m benchmarks.growth build --segments 100000 --vectors FILE.npz --folder F
    python -m benchmarks.growth search --segments 100000 --vectors FILE.npz --folder F

One process writes vectors into shards and then builds the index as publishing does: the kind is chosen (``auto``),
built, tuned on captions, written. Another opens it, as a service does, searches, and is then compared with the exact
answer on queries that had no part in tuning. Peak memory is what the kernel counted. Vectors are drawn from a trained
model's distribution, block by block in either process (``benchmarks.vectors``), and are never in memory as a whole.
``benchmarks.million`` does the same with a whole store and the reranking on top, and takes longer.

Legend: N segments, D channels, Q queries, k neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Scale, interleave, reading, resident, run_child
from benchmarks.report_rows import Row, Target
from benchmarks.trained_vectors import ENCODED
from benchmarks.vectors import BLOCK_ROWS, Floats, VectorSet, recall, write_distribution

if TYPE_CHECKING:
    from indexer.store.shards import ShardKind
    from indexer.store.vectors import MappedSide

NEIGHBOURS, BATCH, COUNTED_QUERIES, CAPTIONS_HELD = 100, 32, 200, 1000
MEMORY_LIMIT_MIB = 4096
INDEX_FILE, VIDEOS, CAPTIONS = "index.faiss", "videos", "captions"


def measure(scale: Scale) -> Iterator[Row]:
    """The section of the report: rows of each size."""
    quick = ["--quick"] if scale.quick else []
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        vectors = Path(name) / "vectors.npz"
        write_distribution(vectors, clips=scale.pick(ENCODED, 60), dim=scale.pick(512, 128))
        for segments in scale.pick((10_000, 100_000, 1_000_000), (1000, 2000)):
            with tempfile.TemporaryDirectory() as folder:
                common = ["--segments", str(segments), "--vectors", str(vectors), "--folder", folder]
                built = run_child("benchmarks.growth", ["build", *common], thread_count=cores)
                searched = run_child("benchmarks.growth", ["search", *common, *quick], thread_count=cores)
            yield from _rows(segments, built.answer, searched.answer)


def _rows(segments: int, built: dict[str, Any], searched: dict[str, Any]) -> Iterator[Row]:
    def row(series: str, **more: Any) -> Row:
        facts = {"series": series, "segments": segments, **more.pop("facts", {})}
        return Row(name=f"{series}, {segments:,} segments", facts=facts, note=note, **more)

    note = f"{built['factory']} {built['options']}".strip()
    limit = Target(of="value", bound=MEMORY_LIMIT_MIB)
    enough = Target(of="value", sense="at least", bound=0.98)
    floor = {"floor": "reading all vectors once, as an exact search must", "floor_samples": searched["floor"]}
    yield row("build, with choice and tuning", clock="wall", samples=(built["seconds"],))
    yield row("one query", clock="wall", samples=searched["one"], **floor)
    yield row(f"a query of {BATCH} at once", clock="wall", samples=searched["batch"])
    yield row(
        f"recall@{NEIGHBOURS}",
        unit="share",
        samples=(searched["recall"],),
        better="more",
        target=enough,
        facts={"recall that the index states": built["recall"]},
    )
    yield row("index, bytes a vector", unit="B/vector", samples=(built["file_bytes"] / segments,))
    yield row("most memory while building", unit="MiB", samples=(built["peak_mib"],), target=limit)
    yield row(
        "most memory while searching",
        unit="MiB",
        samples=(searched["peak_mib"],),
        target=limit,
        facts={"of that, mapped files": searched["files_mib"], "before the index was opened": searched["before_mib"]},
    )


def build(found: VectorSet, folder: Path) -> dict[str, Any]:
    """Write the vectors, then build, tune and write the index; only the latter is timed."""
    from indexer.store.build_index import write_index
    from indexer.store.config import ModelSpec, StoreSettings
    from indexer.store.shards import CAPTIONS as CAPTION_SHARDS
    from indexer.store.shards import POOLED
    from model.config import SamplingConfig

    _write_rows(folder / VIDEOS, POOLED, found.dim, found.blocks())
    _write_rows(folder / CAPTIONS, CAPTION_SHARDS, found.dim, [found.queries(CAPTIONS_HELD, part=1)])
    settings = StoreSettings(
        model_spec=ModelSpec(model="none"), fingerprint="0" * 64, dim=found.dim, sampling=SamplingConfig()
    )
    videos, captions = _side(folder / VIDEOS, POOLED, found.dim), _side(folder / CAPTIONS, CAPTION_SHARDS, found.dim)
    begun = time.perf_counter()
    report = write_index(
        folder / INDEX_FILE,
        videos,
        captions,
        settings,
        names=(VIDEOS, CAPTIONS),
        memory_bytes=settings.index_memory,
    )
    seconds = time.perf_counter() - begun
    peak = resident().peak
    return {
        "seconds": seconds,
        "peak_mib": peak,
        "file_bytes": (folder / INDEX_FILE).stat().st_size,
        **report.model_dump(),
    }


def search(found: VectorSet, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Open the index, search it, and compare with the exact answer."""
    import torch  # noqa: F401 - what a service has loaded before it opens an index

    from indexer.ann import index as ann
    from indexer.ann.recipe import split_options
    from indexer.store.shards import POOLED

    queries = found.queries(COUNTED_QUERIES)
    before = resident()
    built = json.loads((folder / "built.json").read_text(encoding="utf-8"))
    side = _side(folder / VIDEOS, POOLED, found.dim)
    refine = split_options(built["options"])[1]
    ids_N = side.side.ids_N
    index = ann.load(folder / INDEX_FILE, ids_N, rows=side.rows, refine=refine, mmap=built["mapped"])
    _, found_Qk = index.search(queries, NEIGHBOURS)
    now = resident()
    stored = np.fromfile(folder / INDEX_FILE, dtype=np.float32, count=min(1 << 26, built["file_bytes"] // 4))
    share = 4 * found.count * found.dim / stored.nbytes
    turn = count()

    def one() -> object:
        place = next(turn) % COUNTED_QUERIES
        return index.search(queries[place : place + 1], NEIGHBOURS)

    tasks = {"one": one, "batch": lambda: index.search(queries[:BATCH], NEIGHBOURS), "floor": reading(stored)}
    times = interleave(tasks, rounds=5 if quick else 40, clock="wall", budget_seconds=20)
    return {
        "one": times["one"],
        "batch": tuple(seconds / BATCH for seconds in times["batch"]),
        "floor": tuple(seconds * share for seconds in times["floor"]),
        "recall": recall(found_Qk, exact(found, queries, NEIGHBOURS)),
        "peak_mib": now.peak,
        "files_mib": round(now.files, 1),
        "before_mib": round(before.all, 1),
    }


def _write_rows(folder: Path, kind: ShardKind, dim: int, blocks: Iterable[Floats]) -> None:
    """Shards of rows as an indexing run writes them, and where each row is."""
    from indexer.store.shards import ShardWriter

    folder.mkdir()
    writer = ShardWriter(folder=folder, kind=kind, dim=dim, rows={})
    shards, rows = [], []
    for block in blocks:
        place = writer.append(block)
        shards.append(np.full(place.rows, place.shard, dtype=np.int32))
        rows.append(place.row + np.arange(place.rows, dtype=np.int64))
    writer.sync()
    writer.close()
    np.save(folder / "where-shard.npy", np.concatenate(shards))
    np.save(folder / "where-row.npy", np.concatenate(rows))


def _side(folder: Path, kind: ShardKind, dim: int) -> MappedSide:
    """The rows of such a folder, as publishing sees them."""
    from indexer.store.shards import ShardReader
    from indexer.store.vectors import MappedSide, Side
    from model.emcl.correction import Correction
    from model.emcl.em import FrozenMap

    shards_N, rows_N = np.load(folder / "where-shard.npy"), np.load(folder / "where-row.npy")
    numbers = [int(number) for number in np.unique(shards_N)]
    held = {number: int(rows_N[shards_N == number].max()) + 1 for number in numbers}
    ids_N = np.arange(len(rows_N), dtype=np.int64)
    side = Side(ids_N, shards_N, rows_N, ShardReader(folder, kind, dim, held))
    return MappedSide(side, Correction(frozen=FrozenMap.neutral(dim)), "videos")


def exact(found: VectorSet, queries_QD: Floats, k: int) -> npt.NDArray[np.int64]:
    """Row numbers ``(Q, k)`` of the true neighbours, block by block."""
    import torch

    queries = torch.from_numpy(queries_QD)
    scores = torch.full((len(queries), k), -torch.inf)
    rows = torch.full((len(queries), k), -1, dtype=torch.int64)
    for number, block in enumerate(found.blocks()):
        here = queries @ torch.from_numpy(block).T
        numbers = torch.arange(len(block)).expand(len(queries), -1) + number * BLOCK_ROWS
        best = torch.topk(torch.cat([scores, here], dim=1), k)
        rows = torch.cat([rows, numbers], dim=1).gather(1, best.indices)
        scores = best.values
    neighbours: npt.NDArray[np.int64] = rows.numpy()
    return neighbours


def main() -> int:
    """One step of one size, in this process; the last line is its answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["build", "search"])
    parser.add_argument("--segments", type=int, required=True)
    parser.add_argument("--vectors", type=Path, required=True, help="the distribution to draw from")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    found = VectorSet.read(given.vectors, given.segments)
    if given.step == "build":
        answer = build(found, given.folder)
        (given.folder / "built.json").write_text(json.dumps(answer), encoding="utf-8")
    else:
        answer = search(found, given.folder, quick=given.quick)
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
