"""Whole indexing beside its two floors, decoding alone and encoding alone, with as many processes and threads.

    python -m benchmarks.indexing [--clips FOLDER] [--rounds 2] [--json FILE]

One decode process and one encoder thread, so that each of them has a core of its own on two cores and the floor of the
whole is the slower of the two (``ratio``: target 1.2). The three take turns in every round; the least time of each
counts. ``cores`` is processor time over wall time of the whole run, and ``work`` what its processor time is to that of
both floors together: on a busy machine it is more informative than the wall clock.

Two corpora are made: the demo's clips (160 pixels, 3 to 4 s) for the shipped model, and 720p clips of 10 s for a
ViT-B/32 with random weights (in bf16 where that is faster), where decoding and encoding both count. ``--clips FOLDER``
takes a folder of your own instead of the second. The last part says what ``--sampling keyframes`` costs in ranking, on
clips of the demo.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexer.build.decode import DecodedSegment, DecodeSettings
from indexer.build.decode_pool import Reader, ReaderSettings
from indexer.build.encode import SEGMENT_BATCH, padded
from indexer.sources.discover import discover, hash_files
from model.clip.towers import Precision
from model.config import SamplingConfig

if TYPE_CHECKING:
    from indexer.locations import Location
    from model.encoder import Encoder

DEMO_CLIPS, LARGE_CLIPS, LARGE_SECONDS = 160, 16, 10
RANKED_CLIPS, RANKED_SEEDS = 100, (11, 12)
WORKERS = 1
SEGMENT_SECONDS = 30.0
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
PHASES = ("decoding", "encoding", "whole")


@dataclass(frozen=True, kw_only=True)
class Times:
    """Wall and processor seconds."""

    wall: float
    cpu: float


def measure(
    *,
    rounds: int = 2,
    demo_clips: int = DEMO_CLIPS,
    large_clips: int = LARGE_CLIPS,
    clips: Path | None = None,
    ranked_clips: int = RANKED_CLIPS,
    ranked_seeds: Sequence[int] = RANKED_SEEDS,
) -> dict[str, Any]:
    """Results of the benchmark as JSON: ``runs`` by corpus and sampling, and ``ranking``.

    A run holds ``seconds`` (least wall time of each phase), ``ratio`` (whole to the slower floor), ``cores``, ``work``,
    ``segments`` and ``segments_per_second``; ranking holds ``clips``, ``seeds`` and ``r_at_1`` in percent by sampling,
    with and without EMCL, as a mean over the seeds.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            demo = _demo_encoder()
            runs = {"demo": measure_corpus(_demo_corpus(folder / "demo", demo_clips), demo, "uniform", rounds)}
            large = clips if clips is not None else _large_corpus(folder / "large", large_clips)
            encoder, precision = _large_encoder()
            for strategy in ("uniform", "keyframes"):
                title = f"{'720p' if clips is None else clips}, {strategy}"
                runs[title] = measure_corpus(large, encoder, strategy, rounds)
            del encoder
            ranking = measure_ranking(folder / "ranked", demo, ranked_clips, ranked_seeds)
    finally:
        torch.set_num_threads(threads)
    machine = {"workers": WORKERS, "encoder_threads": 1, "cores": os.cpu_count(), "large_precision": precision}
    return {**machine, "runs": runs, "ranking": ranking}


def measure_corpus(folder: Path, encoder: Encoder, strategy: str, rounds: int) -> dict[str, Any]:
    """One corpus with one encoder: both floors and the whole, in turns."""
    sampling = SamplingConfig(**{**encoder.config.sampling.model_dump(), "strategy": strategy})
    settings = DecodeSettings(sampling=sampling, segment_seconds=SEGMENT_SECONDS, preprocess=encoder.preprocess)
    reader = ReaderSettings(decode=settings, workers=WORKERS)
    files = discover([str(folder)]).files
    locations = [found.location for found in hash_files(files, {}, threads=2) if found.location is not None]
    segments = _decoded(locations, reader)
    _encode(encoder, segments[:SEGMENT_BATCH])  # the first batch pays for what is made once
    tasks: dict[str, Callable[[], object]] = {
        "decoding": lambda: _decoded(locations, reader),
        "encoding": lambda: _encode(encoder, segments),
        "whole": lambda: _build(folder, encoder, sampling),
    }
    best: dict[str, Times] = {}
    for number in range(rounds):
        for name in PHASES if number % 2 == 0 else reversed(PHASES):
            found = _timed(tasks[name])
            if name not in best or found.wall < best[name].wall:
                best[name] = found
    floor = max(best["decoding"].wall, best["encoding"].wall)
    return {
        "videos": len(locations),
        "segments": len(segments),
        "frames": sum(len(segment.frames_FHWC) for segment in segments),
        "seconds": {name: best[name].wall for name in PHASES},
        "cpu_seconds": {name: best[name].cpu for name in PHASES},
        "ratio": best["whole"].wall / floor,
        "cores": best["whole"].cpu / best["whole"].wall,
        "work": best["whole"].cpu / (best["decoding"].cpu + best["encoding"].cpu),
        "segments_per_second": len(segments) / best["whole"].wall,
    }


def measure_ranking(folder: Path, encoder: Encoder, count: int, seeds: Sequence[int]) -> dict[str, Any]:
    """R@1 in percent, text to video, of the demo's test clips, sampled both ways and ranked with and without EMCL."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        corpus = _demo_corpus(folder / str(seed), count, seed)
        rows = [json.loads(line) for line in (corpus / "captions.jsonl").read_text("utf-8").splitlines()]
        text_QD = encoder.encode_texts([row["captions"][0] for row in rows])
        for strategy in ("uniform", "keyframes"):
            features_NFD, mask_NF = _features(corpus, [row["video"] for row in rows], encoder, strategy)
            for name, rerank in (("with EMCL", "emcl"), ("without", "none")):
                hits = [
                    int(_scores(encoder, text_QD[number], features_NFD, mask_NF, rerank).argmax() == number)
                    for number in range(len(rows))
                ]
                found.setdefault(strategy, {}).setdefault(name, []).append(100 * float(np.mean(hits)))
    means = {key: {name: float(np.mean(values)) for name, values in parts.items()} for key, parts in found.items()}
    return {"clips": count, "seeds": list(seeds), "r_at_1": means, "r_at_1_by_seed": found}


def _timed(task: Callable[[], object]) -> Times:
    began, cpu = time.perf_counter(), _cpu_seconds()
    task()
    return Times(wall=time.perf_counter() - began, cpu=_cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _decoded(locations: Sequence[Location], settings: ReaderSettings) -> list[DecodedSegment]:
    with Reader(settings) as reader:
        found = list(reader.read(locations))
    failed = [result.reason for result in found if result.segment is None]
    if failed:
        raise SystemExit(f"{len(failed)} segments cannot be decoded, such as: {failed[0]}")
    return [result.segment for result in found if result.segment is not None]


def _encode(encoder: Encoder, segments: Sequence[DecodedSegment]) -> None:
    for start in range(0, len(segments), SEGMENT_BATCH):
        frames, mask = padded([segment.frames_FHWC for segment in segments[start : start + SEGMENT_BATCH]])
        encoder.pool(encoder.encode_videos(frames, mask), mask)


def _build(folder: Path, encoder: Encoder, sampling: SamplingConfig) -> None:
    from indexer.build.options import BuildRequest
    from indexer.build.progress import Progress
    from indexer.build.run import build
    from indexer.store.config import ModelSpec, StoreSettings
    from indexer.store.writer import StoreWriter

    settings = StoreSettings(
        model_spec=ModelSpec(), fingerprint=encoder.fingerprint, dim=encoder.dim, sampling=sampling
    )
    with tempfile.TemporaryDirectory() as store, StoreWriter.open(store, settings=settings) as writer:
        report = build(writer, encoder, BuildRequest(paths=[str(folder)], workers=WORKERS), Progress())
    assert report.complete, report.failed


def _features(corpus: Path, names: Sequence[str], encoder: Encoder, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    from model.video.sampling import decode

    sampling = SamplingConfig(**{**encoder.config.sampling.model_dump(), "strategy": strategy})
    frames = [encoder.preprocess(decode(corpus / name, sampling=sampling).frames) for name in names]
    frames_NFHWC, mask_NF = padded(frames)
    parts = [
        encoder.encode_videos(frames_NFHWC[start : start + 32], mask_NF[start : start + 32])
        for start in range(0, len(frames_NFHWC), 32)
    ]
    return np.concatenate(parts), mask_NF


def _scores(encoder: Encoder, text_D: np.ndarray, features_NFD: np.ndarray, mask_NF: np.ndarray, rerank: Any) -> Any:
    present = np.ones((1, len(mask_NF)), dtype=bool)
    return encoder.score_videos(text_D[None], features_NFD[None], mask_NF[None], present, rerank).scores_QN[0]


def _demo_corpus(folder: Path, count: int, seed: int = 5) -> Path:
    from model.demo.corpus import write_corpus

    write_corpus(folder, split="test", count=count, seed=seed, captions=1)
    return folder


def _large_corpus(folder: Path, count: int) -> Path:
    """720p clips: one that is drawn, and copies with bytes at their end that no decoder reads, so as to be others."""
    from benchmarks.decode import write_clip

    folder.mkdir()
    first = folder / "0.mp4"
    write_clip(first, LARGE_SECONDS, gop=60)
    content = first.read_bytes()
    for number in range(1, count):
        box = number.to_bytes(8, "big")
        (folder / f"{number}.mp4").write_bytes(content + (8 + len(box)).to_bytes(4, "big") + b"free" + box)
    return folder


def _demo_encoder() -> Encoder:
    from model.encoder import load_encoder

    return load_encoder("demo", device="cpu")


def _large_encoder() -> tuple[Encoder, Precision]:
    """ViT-B/32 as people use it, with random weights: as fast as any other, and nothing to download."""
    import torch

    from model.clip.tokenizer import build_tokenizer
    from model.config import ClipConfig, ModelConfig
    from model.encoder import Encoder
    from model.net import build_net

    config = ModelConfig(clip=ClipConfig(architecture="ViT-B-32", pretrained=None))
    torch.manual_seed(0)
    net = build_net(config)
    tokenizer = build_tokenizer(config.tokenizer, config.clip)
    encoder = Encoder(net, tokenizer, fingerprint="0" * 64, device=torch.device("cpu"))
    frames = np.zeros((1, 12, *encoder.preprocess.shape), dtype=np.uint8)
    seconds: dict[Precision, float] = {}
    for precision in PRECISIONS:
        net.clip.set_precision(precision)
        encoder.encode_videos(frames, np.ones((1, 12), dtype=bool))
        seconds[precision] = _timed(lambda: encoder.encode_videos(frames, np.ones((1, 12), dtype=bool))).cpu
    best = min(PRECISIONS, key=lambda precision: seconds[precision])
    net.clip.set_precision(best)
    return encoder, best


def _print(found: dict[str, Any]) -> None:
    print(f"{found['workers']} decode process, {found['encoder_threads']} encoder thread, {found['cores']} cores")
    for title, run in found["runs"].items():
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in run["seconds"].items())
        print(f"\n{title}: {run['videos']} videos, {run['frames']} frames\n  {seconds}")
        print(
            f"  whole / slower floor {run['ratio']:.2f}, cores busy {run['cores']:.2f}, "
            f"work / both floors {run['work']:.2f}, {run['segments_per_second']:.1f} segments/s"
        )
    ranking = found["ranking"]
    print(f"\nR@1 in %, {ranking['clips']} clips, mean of seeds {ranking['seeds']}")
    for sampling, parts in ranking["r_at_1"].items():
        print(f"  {sampling:10} " + ", ".join(f"{name} {value:.1f}" for name, value in parts.items()))


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, help="a folder of videos to take instead of the 720p clips")
    parser.add_argument("--rounds", type=int, default=2, help="how often each phase is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file too")
    options = parser.parse_args()
    began = time.perf_counter()
    found = measure(rounds=options.rounds, clips=options.clips)
    _print(found)
    print(f"\n{time.perf_counter() - began:.0f} s in all", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
