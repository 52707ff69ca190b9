"""The encoder's runtimes beside the machine's matrix products: images a second and milliseconds of one text.

python -m benchmarks.encoders [--rounds 7] [--texts 512] [--json FILE]

ViT-B/32 with random weights, which takes as long as with trained ones; says nothing about rankings (that is what the
guard of `emcl export` measures). Every runtime is measured in the same run in turns, with one thread (its processor
time) and with all cores (wall time), next to products of large square matrices in the same precision: the share of
that peak is what a row is worth on another machine. Needs the extra `onnx`; takes about 90 seconds on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Clock, Task, interleave, matrix_product, threads
from model.clip.tokenizer import text_buckets
from model.clip.towers import ClipTowers, build_clip
from model.config import ClipConfig
from model.export.export import write_towers
from model.runtime.choose import machine_of
from model.runtime.onnx import OnnxTowers
from model.runtime.packed import can_pack, pack

ARCHITECTURE = "ViT-B-32-quickgelu"
IMAGES = 12  # frames of one video
LENGTHS = (8, 32, 77)
PEAK_SIDE = 2048
TARGETS = {"text_32_ms": {"onnx int8": 10.0, "torch bf16": 25.0}, "image_share": {"torch bf16": 0.4}}

# Runtime to the precision whose peak it is held against.
PRECISIONS = {
    "torch fp32, not prepared": "fp32",
    "torch fp32": "fp32",
    "torch bf16, not prepared": "bf16",
    "torch bf16": "bf16",
    "onnx fp32": "fp32",
    "onnx int8": "int8",
}


def measure(*, rounds: int = 5, texts: int = 96, budget_seconds: float = 60.0) -> dict[str, Any]:
    """All figures. ``budget_seconds`` bounds the time of the measured rounds (exporting takes about 30 s besides)."""
    with tempfile.TemporaryDirectory() as folder:
        files = _exported(Path(folder))
        operations = _operations(_towers("fp32"))
        torch_towers = {
            name: _towers("bf16" if "bf16" in name else "fp32", prepared="not" not in name)
            for name in PRECISIONS
            if name.startswith("torch")
        }
        cores = len(os.sched_getaffinity(0))
        share = budget_seconds / 3
        results: dict[str, Any] = {"architecture": ARCHITECTURE, "operations": operations, "cores": cores}
        results["hardware"] = vars(machine_of(torch.device("cpu")))
        for name, count, clock in (("one_thread", 1, "thread"), ("all_cores", cores, "wall")):
            if name == "all_cores" and cores == 1:
                continue
            with threads(count), torch.inference_mode():
                runtimes = {**torch_towers, **_onnx_towers(files)}
                lengths = LENGTHS
                if count > 1:  # the rest says nothing more, and waits for each other's threads on a busy machine
                    runtimes = {name: runtime for name, runtime in runtimes.items() if "not" not in name}
                    lengths = LENGTHS[1:2]
                results[name] = _rates(runtimes, operations, lengths, rounds=rounds, clock=clock, budget_seconds=share)
        with threads(1), torch.inference_mode():
            results["mixed_texts"] = _mixed(torch_towers["torch bf16"], texts, rounds=min(rounds, 3))
    results["targets"] = _targets(results["one_thread"]["runtimes"])
    return results


def _towers(precision: Any, *, prepared: bool = False) -> ClipTowers:
    torch.manual_seed(0)
    towers = build_clip(ClipConfig(architecture=ARCHITECTURE), precision=precision)
    if prepared and can_pack(towers):
        pack(towers)
    return towers


def _exported(folder: Path) -> dict[str, dict[Any, Path]]:
    towers = _towers("fp32")
    files: dict[str, dict[Any, Path]] = {}
    for name, kind in (("onnx fp32", "onnx"), ("onnx int8", "onnx-int8")):
        (folder / kind).mkdir()
        files[name] = write_towers(towers, folder / kind, kind)  # type: ignore[arg-type]
    return files


def _onnx_towers(files: dict[str, dict[Any, Path]]) -> dict[str, OnnxTowers]:
    return {name: OnnxTowers(paths, trims_text=True, one_by_one="int8" in name) for name, paths in files.items()}


def _operations(towers: ClipTowers) -> dict[str, float]:
    """Multiplications and additions, counted by PyTorch, of one image and of one text."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = {}
    for name, call in _inputs(
        towers, LENGTHS, images=1
    ).items():  # with gradients: else attention is one uncounted operation
        with FlopCounterMode(display=False) as counter:
            call()
        counted[name] = float(counter.get_total_flops())
    return counted


def _inputs(runtime: Any, text_lengths: tuple[int, ...], *, images: int = IMAGES) -> dict[str, Task]:
    pixels = torch.randn(images, 3, 224, 224)
    calls: dict[str, Task] = {"image": lambda: runtime.image_features(pixels)}
    for length in text_lengths:
        ids, lengths = torch.randint(1, 49_000, (1, length)), torch.tensor([length])
        calls[f"text_{length}"] = lambda ids=ids, lengths=lengths: runtime.text_features(ids, lengths)  # type: ignore[misc]
    return calls


def _rates(
    runtimes: dict[str, Any],
    operations: dict[str, float],
    text_lengths: tuple[int, ...],
    *,
    rounds: int,
    clock: Clock,
    budget_seconds: float,
) -> dict[str, Any]:
    tasks: dict[str, Task] = {f"peak {name}": task for name, task in _peaks().items()}
    for name, runtime in runtimes.items():
        tasks |= {f"{name} {what}": call for what, call in _inputs(runtime, text_lengths).items()}
    times = interleave(tasks, rounds=rounds, clock=clock, warm_up=1, budget_seconds=budget_seconds)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    peaks = {name: 2 * PEAK_SIDE**3 / seconds[f"peak {name}"] for name in _peaks()}
    rows = {}
    for name in runtimes:
        peak = peaks[PRECISIONS[name]]
        image = seconds[f"{name} image"] / IMAGES
        row = {"images_per_second": 1 / image, "image_share": operations["image"] / image / peak}
        for length in text_lengths:
            text = seconds[f"{name} text_{length}"]
            row[f"text_{length}_ms"] = 1000 * text
            row[f"text_{length}_share"] = operations[f"text_{length}"] / text / peak
        rows[name] = row
    measured = min(len(values) for values in times.values())
    return {"clock": clock, "rounds": measured, "peak_gflops": {k: v / 1e9 for k, v in peaks.items()}, "runtimes": rows}


def _peaks() -> dict[str, Task]:
    bytes_ = torch.randint(-127, 128, (PEAK_SIDE, PEAK_SIDE), dtype=torch.int8)
    return {
        "fp32": matrix_product(PEAK_SIDE, "float32"),
        "bf16": matrix_product(PEAK_SIDE, "bfloat16"),
        "int8": lambda: torch._int_mm(bytes_, bytes_),
    }


def _mixed(towers: ClipTowers, count: int, *, rounds: int) -> dict[str, Any]:
    """Texts of mixed lengths: in buckets, as one batch, in halves sorted by length (as before buckets), one by one."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.6, 0.5, size=count).round().astype(int), 3, LENGTHS[-1]).tolist()  # median 13
    in_order = sorted(range(count), key=lengths.__getitem__)
    half = -(-count // 2)
    ways: dict[str, list[list[int]]] = {
        "one batch": [in_order],
        "two batches by length": [in_order[:half], in_order[half:]],
        "buckets": list(text_buckets(lengths, most=256)),
        "one by one": [[place] for place in in_order],
    }
    tasks = {name: _encoding(towers, lengths, groups) for name, groups in ways.items()}
    times = interleave(tasks, rounds=rounds, clock="thread", warm_up=1)
    tokens = {name: sum(len(group) * max(lengths[place] for place in group) for group in ways[name]) for name in ways}
    return {
        "texts": count,
        "tokens": sum(lengths),
        "longest": max(lengths),
        "seconds": {name: float(np.median(values)) for name, values in times.items()},
        "padded_tokens": tokens,
    }


def _encoding(towers: ClipTowers, lengths: list[int], groups: list[list[int]]) -> Callable[[], None]:
    batches = []
    for group in groups:
        own = torch.tensor([lengths[place] for place in group])
        batches.append((torch.ones(len(group), int(own.max()), dtype=torch.int64), own))

    def run() -> None:
        for ids, own in batches:
            towers.text_features(ids, own)

    return run


def _targets(rows: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    found = []
    for figure, limits in TARGETS.items():
        for name, limit in limits.items():
            value = rows[name][figure]
            met = value >= limit if figure.endswith("share") else value <= limit
            found.append({"runtime": name, "figure": figure, "value": value, "target": limit, "met": met})
    return found


def lines(results: dict[str, Any]) -> Iterator[str]:
    """The figures as Markdown tables."""
    for name in ("one_thread", "all_cores"):
        if name not in results:
            continue
        part = results[name]
        peaks = ", ".join(f"{key} {value:.0f}" for key, value in part["peak_gflops"].items())
        yield f"\n{name.replace('_', ' ')} ({part['clock']} time, {part['rounds']} rounds); peak GFLOP/s: {peaks}\n"
        measured = [n for n in LENGTHS if all(f"text_{n}_ms" in row for row in part["runtimes"].values())]
        yield "| runtime | images/s | of peak | " + " | ".join(f"text of {n}, ms | of peak" for n in measured) + " |"
        yield "|---" * (3 + 2 * len(measured)) + "|"
        for runtime, row in part["runtimes"].items():
            cells = [f"{row['images_per_second']:.1f}", f"{row['image_share']:.0%}"]
            for length in measured:
                cells += [f"{row[f'text_{length}_ms']:.1f}", f"{row[f'text_{length}_share']:.0%}"]
            yield f"| {runtime} | " + " | ".join(cells) + " |"
    mixed = results["mixed_texts"]
    yield f"\n{mixed['texts']} texts of mixed lengths, {mixed['tokens']} tokens, torch bf16, one thread:"
    for way, seconds in mixed["seconds"].items():
        yield f"* {way}: {1000 * seconds:.0f} ms, {mixed['padded_tokens'][way]} tokens with padding"
    for target in results["targets"]:
        word = "met" if target["met"] else "MISSED"
        yield f"target {target['runtime']} {target['figure']} {target['target']}: {target['value']:.3g}, {word}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--texts", type=int, default=512, help="number of texts of mixed lengths")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    results = measure(rounds=options.rounds, texts=options.texts, budget_seconds=300.0)
    for line in lines(results):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
