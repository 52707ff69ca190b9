"""Each stage of a query beside its floor: arithmetic, exact and approximate search, gathering of features, decoding.

Every function here is a section of the report: it takes the scale and gives rows. A floor is the same work with nothing
around it (reading the same bytes, the same matrix product, the codec alone), taken turn about in the same process.

Legend: N vectors or candidates, D channels, Q queries, k neighbours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import harness
from benchmarks.harness import Scale, Task, interleave
from benchmarks.plain_faiss import PlainIndex
from benchmarks.report_rows import Row, Target
from benchmarks.vectors import Floats, any_rows, recall, same_first

if TYPE_CHECKING:
    from model.config import SamplingConfig

NEIGHBOURS, BATCH = 100, 32
COUNTED_QUERIES = 200
"""Held-out queries that recall is measured on."""


def machine(scale: Scale) -> Iterator[Row]:
    """What this machine can do at best, alone and with all cores: matrix products and reading of memory."""
    import torch

    side = scale.pick(harness.PRODUCT_SIDE, harness.PRODUCT_SIDE_QUICK)
    bytes_read = scale.pick(harness.READ_BYTES, harness.READ_BYTES_QUICK)
    array = np.ones(bytes_read // 4, dtype=np.float32)
    tasks = {
        "matrix product, fp32": (harness.matrix_product(side), 2 * side**3 / 1e9, "GFLOP/s"),
        "matrix product, bf16": (harness.matrix_product(side, "bfloat16"), 2 * side**3 / 1e9, "GFLOP/s"),
        "reading memory": (harness.reading(array), bytes_read / 1e9, "GB/s"),
    }
    for cores in sorted({1, torch.get_num_threads()}):
        with harness.threads(cores):
            times = interleave({name: task for name, (task, _, _) in tasks.items()}, rounds=15, clock="wall")
        for name, (_, work, unit) in tasks.items():
            yield Row(
                name=f"{name}, {cores} thread{'s' if cores > 1 else ''}",
                unit=unit,
                samples=tuple(work / seconds for seconds in times[name]),
                better="more",
                ours=False,
            )


def exact_search(scale: Scale) -> Iterator[Row]:
    """One query against all vectors, and a batch: the memory's speed, the matrix product, FAISS as it comes."""
    import faiss

    from indexer.ann import index as ann

    dim = scale.pick(512, 64)
    vectors, queries = any_rows(scale.pick(200_000, 20_000), dim), any_rows(COUNTED_QUERIES, dim, seed=1)
    ids = np.arange(len(vectors), dtype=np.int64)
    recipe = SimpleNamespace(factory="Flat", options="")
    ours = ann.build(recipe, dim, ids, [vectors], train_rows=vectors[:0])
    index = faiss.IndexFlatIP(dim)
    index.add(vectors)
    plain = PlainIndex(index)
    yield from _single(ours, plain, vectors, queries, scale.pick(40, 6))
    yield from _batches(ours, plain, vectors, queries[:BATCH], scale.pick(12, 5))
    yield _agreement(ours, plain, queries)


def _single(ours: Any, plain: Any, vectors: Any, queries: Any, rounds: int) -> Iterator[Row]:
    tasks = {
        "exact, one query": lambda: ours.search(queries[:1], NEIGHBOURS),
        "exact, one query, FAISS with defaults": lambda: plain.search(queries[:1], NEIGHBOURS),
        "floor": harness.reading(vectors),
    }
    times = interleave(tasks, rounds=rounds, clock="wall", budget_seconds=40)
    for name in list(tasks)[:2]:
        is_ours = "defaults" not in name
        yield Row(
            name=name,
            clock="wall",
            samples=times[name],
            floor="reading the vectors once",
            floor_samples=times["floor"],
            target=Target(bound=1.5) if is_ours else None,
            ours=is_ours,
            note=f"{len(vectors):,} x {vectors.shape[1]}, k = {NEIGHBOURS}",
        )


def _batches(ours: Any, plain: Any, vectors: Any, queries: Any, rounds: int) -> Iterator[Row]:
    import torch

    vectors_ND, queries_DQ = torch.from_numpy(vectors), torch.from_numpy(queries).T
    tasks = {
        "ours": lambda: ours.search(queries, NEIGHBOURS),
        "faiss": lambda: plain.search(queries, NEIGHBOURS),
        "product": lambda: vectors_ND @ queries_DQ,
    }
    times = interleave(tasks, rounds=rounds, clock="wall", budget_seconds=60)
    for name, other, floor, target in (
        ("", "faiss", "FAISS with defaults, the same batch", Target(bound=1 / 7)),
        (", beside its arithmetic", "product", "the matrix product of queries and vectors", None),
    ):
        yield Row(
            name=f"exact, {BATCH} queries at once{name}",
            clock="wall",
            samples=times["ours"],
            floor=floor,
            floor_samples=times[other],
            target=target,
            note=f"{len(vectors):,} x {vectors.shape[1]}, k = {NEIGHBOURS}; seconds of the whole batch",
        )


def _agreement(ours: Any, plain: Any, queries: Floats) -> Row:
    _, true = plain.search(queries, NEIGHBOURS)
    _, mine = ours.search(queries, NEIGHBOURS)
    return Row(
        name=f"exact, recall@{NEIGHBOURS}",
        unit="share",
        samples=(recall(mine, true),),
        # Not 1: neighbours that differ by less than the rounding of a sum may change places at the end of the list.
        target=Target(of="value", sense="at least", bound=0.9999),
        better="more",
        note=f"{len(queries)} queries against FAISS's exact search",
        facts={"same first hit": same_first(mine, true)},
    )


def gather(scale: Scale) -> Iterator[Row]:
    """Frame features of a query's candidates out of the mapped shards, beside copying contiguous rows."""
    from benchmarks.corpus import write_store
    from indexer.store.reader import StoreReader

    segments, dim, frames = scale.pick((8000, 512, 12), (300, 32, 12))
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(Path(folder) / "store", count=segments, dim=dim, frames=frames)
        together = np.ones((segments, frames, dim), dtype=np.float16)
        with StoreReader.open(path) as reader:
            for candidates in scale.pick((100, 1000), (20,)):
                tasks = _gathering(reader, together, candidates)
                times = interleave(tasks, rounds=scale.pick(200, 10), budget_seconds=30)
                yield Row(
                    name=f"features of {candidates} candidates",
                    clock="thread",
                    samples=times["ours"],
                    floor="copying as many contiguous rows",
                    floor_samples=times["floor"],
                    note=f"{frames} frames x {dim}, half precision, pages in memory, other candidates every time",
                )


def _gathering(reader: Any, together: Any, candidates: int) -> dict[str, Task]:
    rng = np.random.default_rng(0)
    ids = reader.segment_ids()
    sets = [np.sort(rng.choice(ids, candidates, replace=False))[None] for _ in range(64)]
    places = rng.integers(0, len(together) - candidates, 64)
    turn, other = count(), count()

    def copy() -> object:
        start = places[next(other) % len(places)]
        return together[start : start + candidates].copy()

    return {"ours": lambda: reader.stored_features(sets[next(turn) % len(sets)]), "floor": copy}


def decoding(scale: Scale) -> Iterator[Row]:
    """Twelve frames of 224 pixels out of a clip, beside the codec alone on the packets that those frames need."""
    from benchmarks.decode import codec_alone, needed_packets, write_clip
    from model.config import SamplingConfig

    seconds = scale.pick(20, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, seconds, gop=scale.pick(250, 15))
        for name, sampling in (
            ("12 frames", SamplingConfig()),
            ("12 frames, key frames only", SamplingConfig(strategy="keyframes")),
        ):
            tasks: dict[str, Task] = {
                "ours": partial(_sampled, path, sampling),
                "floor": partial(codec_alone, path, needed_packets(path, sampling)),
            }
            times = interleave(tasks, rounds=scale.pick(12, 2), warm_up=1, budget_seconds=40)
            yield Row(
                name=name,
                clock="thread",
                samples=times["ours"],
                floor="the codec alone on the packets that these frames need, nothing converted",
                floor_samples=times["floor"],
                note=f"{seconds} s of 720p at 30 fps, H.264, PyAV; with resizing and cropping to 224 pixels",
            )


def _sampled(path: Path, sampling: SamplingConfig) -> object:
    from model.clip.preprocess import Preprocess
    from model.video.sampling import decode

    return Preprocess.square(224)(decode(path, sampling=sampling).frames)
