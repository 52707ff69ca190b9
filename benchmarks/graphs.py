"""Stage 1 as `--index auto` chooses it, beside graphs: FAISS's HNSW, and hnswlib and USearch where pip installs them.

    python -m benchmarks.graphs                       100,000 vectors of 512 channels, about two minutes
    python -m benchmarks.graphs --segments 1000000    ten minutes and 10 GB of memory

All are built on every core and searched by one thread, one query after the other in turns, each with the smallest
breadth at which it finds 0.99 of the true 100 neighbours of 200 queries (or its largest). This program's figure is of
`FaissIndex.search`, with rescoring; the others' are of their bare calls. Packages are installed into a temporary
folder; one that cannot be installed is left out, with the reason.

Legend: N vectors, D channels, Q queries, k neighbours.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks import growth
from benchmarks.harness import Scale, interleave
from benchmarks.report_rows import Row, Target
from benchmarks.vectors import Floats, VectorSet, recall, write_distribution

NEIGHBOURS, QUERIES, WANTED = 100, 200, 0.99
BREADTHS = (100, 150, 200, 300, 400, 600)
CLIPS, DIM = 600, 512
INSTALL_SECONDS = 180

Search = Callable[[Floats], npt.NDArray[np.integer[Any]]]
"""The positions (Q, k) of the neighbours of queries (Q, D)."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """One index: how it is searched with a breadth, how long it took to build, and its bytes per vector."""

    search: Callable[[int], Search]
    seconds: float
    bytes_per_vector: float
    breadths: Sequence[int] = BREADTHS


def measure(scale: Scale) -> Iterator[Row]:
    """The section of the report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_distribution(folder / "vectors.npz", clips=scale.pick(CLIPS, 60), dim=scale.pick(DIM, 128))
        yield from compare(VectorSet.read(folder / "vectors.npz", scale.pick(100_000, 2000)), folder, scale.pick(60, 5))


def compare(found: VectorSet, folder: Path, rounds: int) -> Iterator[Row]:
    """Build all, bring each to the recall that is wanted, and time them in turns."""
    rows_ND, queries_QD = np.concatenate(list(found.blocks())), found.queries(QUERIES)
    true_Qk = growth.exact(found, queries_QD, NEIGHBOURS)
    every_core = faiss.omp_get_max_threads()
    makers: dict[str, Callable[[], Built]] = {
        "ours": lambda: _ours(found, folder / "ours"),
        "FAISS HNSW32": lambda: _graph("HNSW32", rows_ND),
        "FAISS HNSW32,SQ8": lambda: _graph("HNSW32,SQ8", rows_ND),
        "hnswlib": lambda: _hnswlib(rows_ND, _installed("hnswlib", folder / "packages")),
        "USearch": lambda: _usearch(rows_ND, _installed("usearch.index", folder / "packages")),
    }
    tasks, facts = {}, {}
    for name, make in makers.items():
        faiss.omp_set_num_threads(every_core)
        try:
            built = make()
        except (ImportError, subprocess.SubprocessError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr, flush=True)
            continue
        faiss.omp_set_num_threads(1)
        for breadth in built.breadths:
            search = built.search(breadth)
            share = recall(np.concatenate([search(queries_QD[q : q + 1]) for q in range(QUERIES)]), true_Qk)
            if share >= WANTED:
                break
        tasks[name] = _one_of(search, queries_QD)
        facts[name] = {
            f"recall@{NEIGHBOURS}": round(share, 4),
            "breadth": breadth,
            "build, s": round(built.seconds, 1),
            "bytes a vector": round(built.bytes_per_vector),
        }
    times = interleave(tasks, rounds=rounds, budget_seconds=20)
    for name, samples in times.items():
        is_ours = name == "ours"
        yield Row(
            name=f"{name}, {found.count:,} vectors, one query",
            clock="thread",
            samples=samples,
            floor="FAISS HNSW32 at the same recall" if is_ours else "",
            floor_samples=times["FAISS HNSW32"] if is_ours else (),
            target=Target(bound=1.5) if is_ours else None,
            ours=is_ours,
            facts=facts[name],
        )


def _one_of(search: Search, queries_QD: Floats) -> Callable[[], object]:
    """A task that asks the next ten queries, one at a time."""
    turn = iter(range(1 << 60))
    return lambda: [search(queries_QD[(10 * n + q) % QUERIES][None]) for n in [next(turn)] for q in range(10)]


def _ours(found: VectorSet, folder: Path) -> Built:
    from indexer.ann import index as ann
    from indexer.ann.recipe import split_options
    from indexer.store.shards import POOLED

    folder.mkdir()
    built = growth.build(found, folder)
    side = growth._side(folder / growth.VIDEOS, POOLED, found.dim)
    refine = split_options(built["options"])[1]
    index = ann.load(folder / growth.INDEX_FILE, side.side.ids_N, rows=side.rows, refine=refine)
    return Built(
        search=lambda _: lambda queries_QD: index.search(queries_QD, NEIGHBOURS)[1],
        seconds=built["seconds"],
        bytes_per_vector=built["file_bytes"] / found.count,
        breadths=(0,),  # as tuned when it was built
    )


def _graph(factory: str, rows_ND: Floats) -> Built:
    index = faiss.index_factory(rows_ND.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    index.train(rows_ND[: 1 << 16])
    index.add(rows_ND)
    seconds = time.perf_counter() - started

    def search(breadth: int) -> Search:
        index.hnsw.efSearch = breadth
        return lambda queries_QD: index.search(queries_QD, NEIGHBOURS)[1]

    return Built(search=search, seconds=seconds, bytes_per_vector=len(faiss.serialize_index(index)) / len(rows_ND))


def _hnswlib(rows_ND: Floats, hnswlib: Any) -> Built:
    index = hnswlib.Index(space="ip", dim=rows_ND.shape[1])
    started = time.perf_counter()
    index.init_index(max_elements=len(rows_ND), ef_construction=40, M=32)
    index.add_items(rows_ND)
    seconds = time.perf_counter() - started
    index.set_num_threads(1)

    def search(breadth: int) -> Search:
        index.set_ef(breadth)
        return lambda queries_QD: index.knn_query(queries_QD, NEIGHBOURS)[0].astype(np.int64)

    return Built(search=search, seconds=seconds, bytes_per_vector=index.index_file_size() / len(rows_ND))


def _usearch(rows_ND: Floats, usearch: Any) -> Built:
    index = usearch.Index(ndim=rows_ND.shape[1], metric="ip", connectivity=32, expansion_add=40, dtype="f32")
    started = time.perf_counter()
    index.add(np.arange(len(rows_ND)), rows_ND)
    seconds = time.perf_counter() - started

    def search(breadth: int) -> Search:
        index.expansion_search = breadth
        return lambda queries_QD: index.search(queries_QD, NEIGHBOURS, threads=1).keys.reshape(1, -1).astype(np.int64)

    return Built(search=search, seconds=seconds, bytes_per_vector=index.memory_usage / len(rows_ND))


def _installed(module: str, folder: Path) -> Any:
    """A module of another package, installed into ``folder`` if it is not here. Raises ``ImportError`` or what
    subprocesses raise.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        packages = [module.partition(".")[0], *(["numkong"] if module.startswith("usearch") else [])]
        subprocess.run([*command, *packages], check=True, timeout=INSTALL_SECONDS, capture_output=True)
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    return importlib.import_module(module)


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_distribution(folder / "vectors.npz", clips=CLIPS, dim=DIM)
        for row in compare(VectorSet.read(folder / "vectors.npz", asked.segments), folder, 60):
            print(f"{row.name}: {100 * row.value:.3f} ms, {row.facts}", flush=True)


if __name__ == "__main__":
    main()
