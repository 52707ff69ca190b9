"""Sections whose measuring is a benchmark of its own: its figures become rows.

Some of them report medians or least times, not every measurement; ``repeats`` says how often each was taken.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import NotHereError, Scale, interleave
from benchmarks.report_rows import Row, Target

TEXT_TARGETS = {"onnx int8": 0.010, "torch bf16": 0.025}
"""Seconds for one text of 32 tokens on one thread."""
IMAGE_TARGETS = {"torch bf16": 1 / 0.4}
"""Time over that of as many operations in large matrix products: 40 % of their rate."""
INDEXING_TARGET = 1.2
BESIDE_INDEX_BYTES = 64.0


def encoders(scale: Scale) -> Iterator[Row]:
    """The runtimes of the towers (``benchmarks.encoders``), one thread and all cores."""
    if scale.quick:
        raise NotHereError("a quick run leaves it out: exporting the runtimes alone takes half a minute")
    from benchmarks.encoders import PRECISIONS, measure

    found = measure(rounds=9, texts=96, budget_seconds=75.0)
    for part, title in (("one_thread", "one thread"), ("all_cores", "all cores")):
        if part not in found:
            continue
        for runtime, figures in found[part]["runtimes"].items():
            yield from _encoder_rows(runtime, title, figures, found[part], PRECISIONS[runtime])


def _encoder_rows(
    runtime: str, title: str, figures: dict[str, float], part: dict[str, Any], precision: str
) -> Iterator[Row]:
    alone = title == "one thread"
    wanted = {
        "image": IMAGE_TARGETS.get(runtime),
        "text_32": TEXT_TARGETS.get(runtime),
        "text_77": None,
    }
    for what, bound in wanted.items():
        image = what == "image"
        if not image and f"{what}_ms" not in figures:
            continue  # measured on one thread only
        seconds = 1 / figures["images_per_second"] if image else figures[f"{what}_ms"] / 1000
        name = "image, of 12 at once" if image else f"text of {what.removeprefix('text_')} tokens"
        target = Target(of="ratio" if image else "value", bound=bound) if bound is not None and alone else None
        yield Row(
            name=f"{name}, {runtime}, {title}",
            clock=part["clock"],
            samples=(seconds,),
            floor=f"as many operations in large matrix products, {precision}",
            floor_samples=(seconds * figures[f"{what}_share"],),
            repeats=part["rounds"],
            target=target,
            ours="not prepared" not in runtime,
            facts={"images a second": round(figures["images_per_second"], 1)} if image else {},
        )


def rerank(scale: Scale) -> Iterator[Row]:
    """Gathering and reranking of one query on one thread (``benchmarks.rerank``), beside floor and definition."""
    from benchmarks import rerank as bench

    with tempfile.TemporaryDirectory() as folder, bench.mapped_shards(Path(folder)) as reader:
        modes: tuple[bench.Mode, ...] = ("channel", "reference")
        for mode in modes:
            for candidates in bench.CANDIDATES:
                tasks = bench.tasks_of(reader, mode, candidates)
                times = interleave(
                    tasks, rounds=scale.pick(300, 5), warm_up=scale.pick(5, 1), budget_seconds=scale.pick(8.0, 1.0)
                )
                yield Row(
                    name=f"rerank {candidates} candidates, {mode}",
                    clock="thread",
                    samples=times["ours"],
                    floor="reading the features once, and the matrix products that the equations name",
                    floor_samples=times["floor"],
                    target=Target(bound=bench.TARGETS[candidates]),
                    note=f"F = {bench.FRAMES}, D = {bench.DIM}, K = {bench.BASES}, T = {bench.ITERATIONS}",
                    facts={"as defined, without shortcuts, ms": 1000 * statistics.median(times["plain"])},
                )


def whole_query(scale: Scale) -> Iterator[Row]:
    """One client over HTTP with the shipped model, nothing cached (``benchmarks.whole_query``)."""
    from benchmarks import whole_query as bench
    from benchmarks.corpus import captions, write_demo_store
    from model.encoder import load_encoder

    segments = scale.pick(2000, 200)
    texts = captions(bench.WARM_UP + scale.pick(600, 20))
    with tempfile.TemporaryDirectory() as folder:
        store = write_demo_store(Path(folder) / "store", load_encoder("demo", device="cpu"), count=segments)
        asked = bench.over_http(store, [json.dumps({"text": text}).encode() for text in texts])
    stages = [{name: ms for name, ms in one.items() if name != "wall" and ":" not in name} for one in asked]
    yield Row(
        name="whole query, HTTP in to HTTP out",
        clock="wall",
        samples=tuple(one["wall"] / 1000 for one in asked),
        floor="the sum of its stages, as the answer names them",
        floor_samples=tuple(sum(one.values()) / 1000 for one in stages),
        target=Target(bound=bench.TARGET),
        note=f"{segments:,} segments, shipped model, 100 candidates, another text every time, caches off",
        facts={f"{name}, ms": statistics.median(one[name] for one in stages) for name in stages[0]},
    )


def indexing(scale: Scale) -> Iterator[Row]:
    """Whole indexing (``benchmarks.indexing``) beside the slower of decoding and encoding."""
    from benchmarks.indexing import measure

    rounds = scale.pick(2, 1)
    found = measure(
        rounds=rounds,
        demo_clips=scale.pick(100, 4),
        large_clips=scale.pick(24, 1),
        ranked_clips=scale.pick(60, 4),
        ranked_seeds=(11,),
    )
    for title, run in found["runs"].items():
        seconds = run["seconds"]
        slower = max(seconds["decoding"], seconds["encoding"])
        yield Row(
            name=f"indexing, {title}",
            clock="wall",
            samples=(seconds["whole"],),
            floor="the slower of decoding alone and encoding alone",
            floor_samples=(slower,),
            repeats=rounds,
            target=Target(bound=INDEXING_TARGET),
            note=f"{run['videos']} videos, {run['frames']} frames; one decode process, one encoder thread",
            facts={
                "decoding alone, s": seconds["decoding"],
                "encoding alone, s": seconds["encoding"],
                "cores busy": run["cores"],
                "processor time over both floors'": run["work"],
                "segments a second": run["segments_per_second"],
            },
        )
    for sampling, parts in found["ranking"]["r_at_1"].items():
        yield Row(
            name=f"R@1 of {sampling} sampling",
            unit="%",
            samples=(parts["with EMCL"],),
            better="more",
            note=f"{found['ranking']['clips']} generated clips, text to video, shipped model",
            facts={"without EMCL": parts["without"]},
        )


def service_memory(scale: Scale) -> Iterator[Row]:
    """What a segment costs a running service beside its index (``benchmarks.memory``)."""
    if scale.quick:
        raise NotHereError("a quick run leaves it out: between small stores the difference is noise")
    from benchmarks.memory import growth

    with tempfile.TemporaryDirectory() as folder:
        found = growth([10_000, 100_000], Path(folder))
    for step in found["steps"]:
        yield Row(
            name=f"memory of the service beside its index, {step['from']:,} to {step['to']:,} segments",
            unit="B/segment",
            samples=(step["beside_the_index"],),
            target=Target(of="value", bound=BESIDE_INDEX_BYTES),
            facts={
                "in all": step["own_bytes_per_segment"],
                "of that, the index": step["index_bytes_per_segment"],
                "runs of one store are apart by": step["runs_apart"],
            },
        )
