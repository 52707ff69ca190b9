"""What reranking costs beside its own arithmetic, and whether searching leaks.

    python -m benchmarks.rerank                       rerank of one query beside its floor: 100, 200, 1000 candidates
    python -m benchmarks.rerank --store var/demo/store --model demo      … and memory over 10,000 queries

Everything runs in one process on one thread, turn about; medians of that thread's processor time are compared, so that
other work on the machine does not count. Three lines for each number of candidates and each mode of the pass:

- `gather + rerank`: from places to scores as the service does it, frame features read from mapped shards in half
  precision;
- `floor`: reading as many bytes once from the same shards, where they stand together, and the matrix products that the
  equations name, on tensors in memory: frame weights and pooling (F frames of N candidates, as many as fit the
  cache at a time, for they have just been read), T rounds of E-step and M-step over N + 1 rows, the last M-step, the
  reconstruction, the cosines;
- `plain`: the definitions in `model.emcl.pooling` and `model.emcl.em` on gathered features in float32.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.harness import interleave, threads

CANDIDATES, FRAMES, DIM, BASES, ITERATIONS = (100, 200, 1000), 12, 512, 32, 9
SEGMENTS = 20_000
"""Segments in the shards: 246 MB, far more than the caches of a processor hold."""
CACHED = 25
"""Candidates whose frames, 600 kB in single precision, are weighed and pooled at a time; divides all numbers above."""
TARGETS = {100: 2.0, 200: 2.0, 1000: 2.5}
BATCH, REPORT_EVERY = 32, 1000
Mode = Literal["channel", "reference"]


def build_net(mode: Mode = "channel") -> Any:
    """A net of which only the scoring is used: D = 512, K = 32, T = 9, on towers as small as can be."""
    from model.config import ClipConfig, EMCLConfig, ModelConfig, TemporalConfig
    from model.net import build_net

    towers = {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    emcl = {"num_bases": BASES, "iterations": ITERATIONS}
    config = ModelConfig(
        clip=ClipConfig(custom=towers),
        temporal=TemporalConfig(kind="mean"),
        emcl=EMCLConfig.reference(**emcl) if mode == "reference" else EMCLConfig(**emcl),
    )
    return build_net(config).eval()


@contextmanager
def mapped_shards(folder: Path) -> Iterator[Any]:
    """A reader of shards of random features, all read once."""
    from indexer.store.shards import FRAMES as KIND
    from indexer.store.shards import ShardReader, ShardWriter

    writer = ShardWriter(folder=folder, kind=KIND, dim=DIM, rows={})
    generator = np.random.default_rng(0)
    block = (generator.standard_normal((500 * FRAMES, DIM)) / DIM**0.5).astype(np.float16)
    for _ in range(SEGMENTS // 500):
        writer.append(block)
    writer.sync()
    writer.close()
    reader = ShardReader(folder, KIND, DIM, writer.rows)
    for shard, rows in writer.rows.items():
        reader.rows(shard, 0, rows).sum()
    try:
        yield reader
    finally:
        reader.close()


def tasks_of(reader: Any, mode: Mode, candidates: int) -> dict[str, Callable[[], object]]:
    """The three lines of one row. Each call takes other segments."""
    import torch

    net = build_net(mode)
    text_QD = torch.randn(1, DIM)
    mask_QNF = torch.ones(1, candidates, FRAMES, dtype=torch.bool)
    there_QN = torch.ones(1, candidates, dtype=torch.bool)
    counts_N = np.full(candidates, FRAMES)
    generator, per_shard = np.random.default_rng(1), len(reader.rows(0, 0, SEGMENTS * FRAMES)) // FRAMES
    products = matrix_products(candidates)

    chosen_XN = [np.sort(generator.choice(SEGMENTS, candidates, replace=False)) for _ in range(64)]
    places = itertools.cycle([(chosen_N // per_shard, chosen_N % per_shard * FRAMES) for chosen_N in chosen_XN])

    def gather() -> Any:
        return torch.from_numpy(reader.gather_blocks(*next(places), counts_N, FRAMES)).view(torch.float16)[None]

    def ours() -> object:
        with torch.inference_mode():
            return net.score_videos(text_QD, gather(), mask_QNF, there_QN, "emcl")

    def plain() -> object:
        with torch.enable_grad():  # the plain path; nothing here requires a gradient
            return net.requires_grad_(False).score_videos(text_QD, gather().float(), mask_QNF, there_QN, "emcl")

    def floor() -> object:
        start = int(generator.integers(per_shard - candidates)) * FRAMES
        reader.rows(0, start, candidates * FRAMES).view(np.int64).max()  # vectorised
        with torch.inference_mode():
            return products()

    return {"ours": ours, "floor": floor, "plain": plain}


def matrix_products(candidates: int) -> Callable[[], object]:
    """The products of one query, and nothing else, each in the layout that this machine's library likes best."""
    import torch

    text_D, frames_MD = torch.randn(DIM), torch.randn(CACHED * FRAMES, DIM)
    weights_C1F, frames_CFD = torch.rand(CACHED, 1, FRAMES), frames_MD.view(CACHED, FRAMES, DIM)
    rows_ND = torch.randn(candidates + 1, DIM)
    table_DK, bases_NK = torch.rand(DIM, BASES), torch.randn(candidates + 1, BASES)

    def run() -> object:
        for _ in range(candidates // CACHED):
            torch.mv(frames_MD, text_D)
            torch.bmm(weights_C1F, frames_CFD)
        for _ in range(ITERATIONS):
            rows_ND @ table_DK
            bases_NK.T @ rows_ND
        rows_ND @ table_DK
        bases_NK @ table_DK.T
        return rows_ND @ text_D

    return run


def measure(*, budget_seconds: float = 8.0, modes: tuple[Mode, ...] = ("channel", "reference")) -> list[dict[str, Any]]:
    """One row for each mode and number of candidates; ``budget_seconds`` of measuring each, at most."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, threads(1), mapped_shards(Path(folder)) as reader:
        for mode in modes:
            for candidates in CANDIDATES:
                tasks = tasks_of(reader, mode, candidates)
                times = interleave(tasks, rounds=300, warm_up=5, budget_seconds=budget_seconds)
                row = {f"{name}_ms": round(1000 * float(np.median(values)), 3) for name, values in times.items()}
                row |= {"mode": mode, "candidates": candidates, "rounds": len(times["ours"])}
                rows.append({**row, "ratio": round(row["ours_ms"] / row["floor_ms"], 2), "target": TARGETS[candidates]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| mode | candidates | gather + rerank, ms | floor, ms | ratio | at most | plain, ms |", "|---" * 7 + "|"]
    for row in rows:
        lines.append(
            f"| {row['mode']} | {row['candidates']} | {row['ours_ms']:.2f} | {row['floor_ms']:.2f} | "
            f"{row['ratio']:.2f} | {row['target']:.1f} | {row['plain_ms']:.2f} |"
        )
    return "\n".join(lines)


def memory(store: Path, model: str | None, queries: int) -> dict[str, Any]:
    """Resident memory while ``queries`` different texts are searched in batches; MiB at every thousand."""
    import psutil

    from service.search.engine import build_engine
    from service.search.values import SearchQuery
    from service.settings import load_settings

    engine = build_engine(load_settings({"store": store, "model": model, "cache_entries": REPORT_EVERY}))
    process = psutil.Process(os.getpid())
    resident: list[float] = []
    started = time.perf_counter()
    for number in range(0, queries, BATCH):
        engine.search([SearchQuery(text=f"a red circle number {n} moves left") for n in range(number, number + BATCH)])
        if number // REPORT_EVERY != (number + BATCH) // REPORT_EVERY:
            resident.append(round(process.memory_info().rss / 2**20, 1))
    seconds = time.perf_counter() - started
    engine.close()
    # The first thousands fill caches and the allocator's pools; after that nothing may grow.
    settled = resident[len(resident) // 5 :]
    return {
        "queries": queries,
        "queries_per_second": round(queries / seconds, 1),
        "resident_mib": resident,
        "growth_mib": round(settled[-1] - settled[0], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="measuring of each row, at most")
    parser.add_argument("--store", type=Path, help="search this store and watch memory")
    parser.add_argument("--model", help="the store's model, if not the one that it names")
    parser.add_argument("--queries", type=int, default=10_000, help="searches while memory is watched")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    found: dict[str, Any] = {"rows": measure(budget_seconds=given.seconds)}
    print(f"one query, one thread, D={DIM}, F={FRAMES}, K={BASES}, T={ITERATIONS}; medians of processor time")
    print(table(found["rows"]))
    if given.store is not None:
        found["memory"] = memory(given.store, given.model, given.queries)
        print(
            f"{given.queries} queries at {found['memory']['queries_per_second']} a second; resident MiB by thousands: "
            f"{found['memory']['resident_mib']}; growth once settled: {found['memory']['growth_mib']} MiB"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
