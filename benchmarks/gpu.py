"""The same stages on an accelerator: image tower in bfloat16, reranking of a batch, FAISS, beside the card's own rates.

Where there is no CUDA device the section is reported as not measured. What is timed ends with the device's work done
(``synchronize``), in wall time.

Legend: Q queries, N candidates, F frames, D channels, K bases, T iterations, M = N·F.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import Clock, NotHereError, Scale, Task, interleave
from benchmarks.report_rows import Row, Target
from benchmarks.vectors import any_rows, recall

QUERIES, CANDIDATES, FRAMES, DIM, BASES, ITERATIONS = 64, 100, 12, 512, 32, 9
NEIGHBOURS = 100
SIDE, IMAGES = 8192, 384


def measure(scale: Scale) -> Iterator[Row]:
    """The section of the report."""
    import torch

    if not torch.cuda.is_available():
        raise NotHereError("there is no CUDA device, or PyTorch was built without CUDA")
    yield from rates(scale, "cuda")
    yield from encoding(scale, "cuda")
    yield reranking(scale.pick(QUERIES, 2), CANDIDATES, "cuda", clock="wall", rounds=scale.pick(100, 3))
    yield from searching(scale)


def rates(scale: Scale, device: str) -> Iterator[Row]:
    """Matrix products of the card."""
    import torch

    side = scale.pick(SIDE, 64)
    for dtype in ("float32", "bfloat16"):
        left, right = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        task = done(device, partial(torch.matmul, left, right))
        times = interleave({"product": task}, rounds=scale.pick(30, 5), clock="wall", warm_up=5)["product"]
        yield Row(
            name=f"matrix product, {dtype}",
            unit="TFLOP/s",
            samples=tuple(2 * side**3 / seconds / 1e12 for seconds in times),
            better="more",
            ours=False,
        )


def encoding(scale: Scale, device: str) -> Iterator[Row]:
    """ViT-B/32 in bfloat16 (random weights) beside a large product with as many operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model.config import ClipConfig, ModelConfig, TemporalConfig
    from model.net import build_net

    images = scale.pick(IMAGES, 2)
    config = ModelConfig(clip=ClipConfig(architecture="ViT-B-32-quickgelu"), temporal=TemporalConfig(kind="mean"))
    net = build_net(config, precision="bf16", device=torch.device(device)).eval()
    pixels = torch.randint(0, 256, (images, 1, 3, 224, 224), dtype=torch.uint8, device=device)
    mask = torch.ones(images, 1, dtype=torch.bool, device=device)
    side = scale.pick(SIDE, 256)
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    with torch.inference_mode():
        counter = FlopCounterMode(display=False)
        with counter:
            net.encode_video(pixels, mask)
        share = counter.get_total_flops() / (2 * side**3)
        tasks = {
            "ours": done(device, partial(net.encode_video, pixels, mask)),
            "floor": done(device, partial(torch.matmul, left, right)),
        }
        times = interleave(tasks, rounds=scale.pick(30, 2), clock="wall", warm_up=scale.pick(5, 1))
    yield Row(
        name=f"encode {images} images, bfloat16",
        clock="wall",
        samples=times["ours"],
        floor="as many operations in large matrix products, bfloat16",
        floor_samples=tuple(seconds * share for seconds in times["floor"]),
        target=Target(bound=2.0),
        note="ViT-B/32 from uint8 pixels on the device; wanted: half the card's rate",
        facts={"images a second": images / float(np.median(times["ours"]))},
    )


def searching(scale: Scale) -> Iterator[Row]:
    """FAISS's flat index on the card and on the processor, the same batch."""
    import faiss

    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return  # a build for processors only: the rows above are what there is
    queries = any_rows(QUERIES, DIM, seed=1)
    plain = faiss.IndexFlatIP(DIM)
    plain.add(any_rows(scale.pick(1_000_000, 2000), DIM))
    card = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, plain)
    tasks: dict[str, Task] = {
        "ours": lambda: card.search(queries, NEIGHBOURS),
        "cpu": lambda: plain.search(queries, NEIGHBOURS),
    }
    times = interleave(tasks, rounds=10, clock="wall", budget_seconds=60)
    yield Row(
        name=f"exact search on the card, {QUERIES} queries at once",
        clock="wall",
        samples=times["ours"],
        floor="FAISS on the processor, the same batch",
        floor_samples=times["cpu"],
        note=f"{plain.ntotal:,} x {DIM}, k = {NEIGHBOURS}",
        facts={
            f"recall@{NEIGHBOURS}": recall(card.search(queries, NEIGHBOURS)[1], plain.search(queries, NEIGHBOURS)[1])
        },
    )


def reranking(queries: int, candidates: int, device: str, *, clock: Clock, rounds: int) -> Row:
    """A batch of queries, each against its own candidates, from features in the half precision they are stored in."""
    import torch

    from benchmarks.rerank import build_net

    net = build_net("channel").to(device)
    shape = (queries, candidates, FRAMES)
    text_QD = torch.randn(queries, DIM, device=device)
    features_QNFD = torch.randn(*shape, DIM, device=device).half()
    mask_QNF = torch.ones(shape, dtype=torch.bool, device=device)
    kept_QN = torch.ones(shape[:2], dtype=torch.bool, device=device)
    with torch.inference_mode():
        tasks = {
            "ours": done(device, lambda: net.score_videos(text_QD, features_QNFD, mask_QNF, kept_QN, "emcl")),
            "floor": done(device, products(features_QNFD.float(), text_QD)),
        }
        times = interleave(tasks, rounds=rounds, clock=clock, warm_up=min(10, rounds), budget_seconds=30)
    return Row(
        name=f"rerank {queries} queries x {candidates} candidates",
        clock=clock,
        samples=times["ours"],
        floor="its matrix products",
        floor_samples=times["floor"],
        note=f"F = {FRAMES}, D = {DIM}, K = {BASES}, T = {ITERATIONS}, features in half precision",
    )


def products(features_QNFD: Any, text_QD: Any) -> Callable[[], object]:
    """The products of all queries at once, and nothing else."""
    import torch

    device = text_QD.device
    queries, candidates = features_QNFD.shape[:2]
    frames_QMD, text_QD1 = features_QNFD.flatten(1, 2), text_QD[..., None]
    weights_QN1F = torch.rand(queries, candidates, 1, FRAMES, device=device)
    rows_QND = torch.randn(queries, candidates + 1, DIM, device=device)
    table_QDK = torch.rand(queries, DIM, BASES, device=device)
    bases_QNK = torch.rand(queries, candidates + 1, BASES, device=device)

    def run() -> object:
        frames_QMD @ text_QD1
        weights_QN1F @ features_QNFD
        for _ in range(ITERATIONS):
            rows_QND @ table_QDK
            rows_QND.mT @ bases_QNK
        rows_QND @ table_QDK
        bases_QNK @ table_QDK.mT
        return rows_QND @ text_QD1

    return run


def done(device: str, task: Callable[[], object]) -> Task:
    """The task with all its work on the device done."""
    import torch

    def run() -> None:
        task()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
