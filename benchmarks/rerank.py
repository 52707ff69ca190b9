"""What reranking costs beside its own arithmetic, and whether searching leaks.

    python -m benchmarks.rerank                       time of one query's reranking and of its matrix products
    python -m benchmarks.rerank --store var/demo/store --model demo      … and memory over 10,000 queries

Both run in one process on one thread, turn about; medians of that thread's processor time are compared, so that other
work on the machine does not count.
The matrix products are those that the equations name, on tensors that lie ready: frame weights and pooling (F frames of
N candidates), T rounds of E-step and M-step over N + 1 rows, the last M-step, the reconstruction, the cosines.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANDIDATES, FRAMES, DIM, BASES, ITERATIONS = 100, 12, 512, 32, 9
BATCH, REPORT_EVERY = 32, 1000


def build_net() -> Any:
    """A net of which only the scoring is used: D = 512, K = 32, T = 9, on towers as small as can be."""
    from model.config import ClipConfig, EMCLConfig, ModelConfig, TemporalConfig
    from model.net import build_net

    towers = {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    config = ModelConfig(
        clip=ClipConfig(custom=towers),
        temporal=TemporalConfig(kind="mean"),
        emcl=EMCLConfig(num_bases=BASES, iterations=ITERATIONS),
    )
    return build_net(config).eval()


def reranking(net: Any) -> Callable[[], object]:
    """One query against its candidates, as the service asks it."""
    import torch

    text_QD = torch.randn(1, DIM)
    features_QNFD = torch.randn(1, CANDIDATES, FRAMES, DIM)
    mask_QNF = torch.ones(1, CANDIDATES, FRAMES, dtype=torch.bool)
    candidate_mask_QN = torch.ones(1, CANDIDATES, dtype=torch.bool)
    return lambda: net.score_videos(text_QD, features_QNFD, mask_QNF, candidate_mask_QN, "emcl")


def matrix_products() -> Callable[[], object]:
    """The products of the same query, and nothing else."""
    import torch

    text_D1, frames_MD = torch.randn(DIM, 1), torch.randn(CANDIDATES * FRAMES, DIM)
    weights_N1F, frames_NFD = torch.rand(CANDIDATES, 1, FRAMES), frames_MD.view(CANDIDATES, FRAMES, DIM)
    rows_ND = torch.randn(CANDIDATES + 1, DIM)
    table_DK, bases_NK = torch.rand(DIM, BASES), torch.randn(CANDIDATES + 1, BASES)

    def run() -> object:
        frames_MD @ text_D1
        torch.bmm(weights_N1F, frames_NFD)
        for _ in range(ITERATIONS):
            rows_ND @ table_DK
            rows_ND.T @ bases_NK
        rows_ND @ table_DK
        bases_NK @ table_DK.T
        return rows_ND @ text_D1

    return run


def compare(rounds: int) -> dict[str, float]:
    """Median milliseconds of both, measured turn about, and their ratio."""
    import torch

    torch.set_num_threads(1)
    with torch.inference_mode():
        tasks = {"rerank_ms": reranking(build_net()), "products_ms": matrix_products()}
        times: dict[str, list[float]] = {name: [] for name in tasks}
        for number in range(rounds + 20):
            for name, task in tasks.items():
                started = time.thread_time()
                task()
                if number >= 20:
                    times[name].append(1000 * (time.thread_time() - started))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, "ratio": medians["rerank_ms"] / medians["products_ms"]}


def memory(store: Path, model: str | None, queries: int) -> dict[str, Any]:
    """Resident memory while ``queries`` different texts are searched in batches; MiB at every thousand."""
    import psutil

    from service.deps import build_engine
    from service.query import SearchQuery
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
    parser.add_argument("--rounds", type=int, default=300, help="measurements of each")
    parser.add_argument("--store", type=Path, help="search this store and watch memory")
    parser.add_argument("--model", help="the store's model, if not the one that it names")
    parser.add_argument("--queries", type=int, default=10_000, help="searches while memory is watched")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    found: dict[str, Any] = compare(given.rounds)
    print(
        f"rerank of {CANDIDATES} candidates, D={DIM}, F={FRAMES}, K={BASES}, T={ITERATIONS}: "
        f"{found['rerank_ms']:.2f} ms; its matrix products alone: {found['products_ms']:.2f} ms; "
        f"ratio {found['ratio']:.2f} (at most 2 wanted)"
    )
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
