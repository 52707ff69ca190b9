"""A store of a million segments on 2 cores and 4 GB: written, published with ``--index auto``, searched, reranked.

    python -m benchmarks.million                          one million segments, about 15 minutes and 6 GB of disk
    python -m benchmarks.million --segments 100000        a tenth of it

Vectors are drawn from the distribution of a trained model (``benchmarks.trained_vectors``), D = 512. Each phase is a
process of its own, whose peak of resident memory is measured: ``fill`` writes shards and catalogue through the
program's own classes (in bulk: 20 segments a video, 1,000 videos a transaction), ``publish`` builds the generation,
``serve`` opens it with the service's engine and asks one query after the other, its text embedding cached, as a user
would: 100 candidates, EMCL rerank, 10 hits. ``check`` compares with an exact search over all vectors.

Pooled vectors, which refinement reads, are all distinct. Frame features are of the first ``FRAME_SEGMENTS`` segments
alone (12 GB otherwise): the others point at them, so that reading features meets a warm page cache more often than
with as many files; which candidates are found, and what is computed, is the same.

Legend: N segments, Q queries, F frames, D channels.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DIM, FRAMES, CANDIDATES = 512, 12, 100
BASES, ITERATIONS = 32, 9
SEGMENTS_OF_A_VIDEO, COMMIT_VIDEOS, FRAME_SEGMENTS = 20, 1000, 50_000
CAPTIONS, QUERIES, WARM_UP = 20_000, 300, 20
FINGERPRINT, VECTORS = "0" * 64, "vectors.npz"


def build_encoder() -> Any:
    """An encoder of which only the map and the scoring are used: D = 512, K = 32, T = 9."""
    import torch

    from model.clip.tokenizer import build_tokenizer
    from model.config import ClipConfig, EMCLConfig, ModelConfig, TemporalConfig
    from model.encoder import Encoder
    from model.net import build_net

    towers = {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    emcl = EMCLConfig(num_bases=BASES, iterations=ITERATIONS)
    net = build_net(ModelConfig(clip=ClipConfig(custom=towers), temporal=TemporalConfig(kind="mean"), emcl=emcl))
    tokenizer = build_tokenizer(net.config.tokenizer, net.config.clip)
    return Encoder(net, tokenizer, fingerprint=FINGERPRINT, device=torch.device("cpu"))


def vectors_in(folder: Path) -> Any:
    """The distribution, fitted once for all phases."""
    from benchmarks.trained_vectors import TrainedVectors, encode_clips, fit

    path = folder / VECTORS
    if not path.exists():
        np.savez(path, **fit(*encode_clips(), DIM).to_arrays())  # type: ignore[arg-type]
    with np.load(path) as arrays:
        return TrainedVectors(**dict(arrays))


def fill(folder: Path, segments: int) -> dict[str, Any]:
    """Write shards and catalogue."""
    from indexer.store.config import ModelSpec, StoreSettings
    from indexer.store.writer import StoreWriter
    from model.config import SamplingConfig

    vectors = vectors_in(folder)
    settings = StoreSettings(
        model_spec=ModelSpec(model="none"), fingerprint=FINGERPRINT, dim=DIM, sampling=SamplingConfig(max_frames=FRAMES)
    )
    rng = np.random.default_rng(1)
    places: list[Any] = []
    with StoreWriter.open(folder / "store", settings=settings) as writer:
        for start in range(0, segments, SEGMENTS_OF_A_VIDEO * COMMIT_VIDEOS):
            count = min(SEGMENTS_OF_A_VIDEO * COMMIT_VIDEOS, segments - start)
            _write_videos(writer, vectors.draw(count, rng)[0], start, places, rng)
        texts_ND = vectors.draw(CAPTIONS, rng)[1]
        writer.add_captions([(None, f"caption {n}") for n in range(CAPTIONS)], texts_ND)
    return {"segments": segments, "captions": CAPTIONS}


def _write_videos(writer: Any, pooled_ND: Any, start: int, places: list[Any], rng: np.random.Generator) -> None:
    from indexer.locations import Location
    from indexer.store.records import SegmentRow, VideoRow
    from indexer.store.shards import FRAMES as KIND
    from indexer.store.shards import POOLED, to_half

    frames, pooled, catalogue = writer.shards[KIND.name], writer.shards[POOLED.name], writer.catalogue
    times = np.linspace(0, 29, FRAMES)
    rows = []
    for n, pooled_D in enumerate(pooled_ND):
        if start + n < FRAME_SEGMENTS:
            noise_FD = 0.1 / np.sqrt(DIM) * rng.standard_normal((FRAMES, DIM), dtype=np.float32)
            places.append(frames.append(to_half(pooled_D + noise_FD, what="a segment")))
        number = (start + n) % SEGMENTS_OF_A_VIDEO
        rows.append(
            SegmentRow(
                number=number,
                start_seconds=30.0 * number,
                end_seconds=30.0 * number + 30.0,
                timestamps_seconds=30.0 * number + times,
                frames=places[(start + n) % len(places)],
                pooled=pooled.append(pooled_D[None].astype("<f4")),
            )
        )
    frames.sync()
    pooled.sync()
    with catalogue.transaction():
        for first in range(0, len(rows), SEGMENTS_OF_A_VIDEO):
            name = f"/clips/{start + first}.mp4"
            video_id = hashlib.sha256(name.encode()).hexdigest()
            catalogue.add_location(Location(path=name, video_id=video_id, size_bytes=1, modified_ns=1))
            part = rows[first : first + SEGMENTS_OF_A_VIDEO]
            catalogue.add_video(
                VideoRow(
                    video_id=video_id,
                    duration_seconds=30.0 * len(part),
                    width=224,
                    height=224,
                    reason=None,
                    segments=part,
                )
            )
        catalogue.set_shard_rows({KIND.name: frames.rows, POOLED.name: pooled.rows})


def publish(folder: Path, segments: int) -> dict[str, Any]:
    """Build the generation; which index was chosen, and what the publication says of it."""
    from indexer.store.writer import StoreWriter

    seconds: dict[str, float] = {}
    last = ["", time.perf_counter()]

    def phase(name: str) -> None:
        now = time.perf_counter()
        if last[0]:
            seconds[str(last[0])] = round(now - float(last[1]), 1)
        last[:] = [name, now]

    with StoreWriter.open(folder / "store") as writer:
        manifest = writer.publish(build_encoder(), phase)
    phase("")
    assert manifest.counts.segments == segments
    return {"phase_seconds": seconds, "indexes": {side: r.model_dump() for side, r in manifest.indexes.items()}}


def serve(folder: Path, segments: int) -> dict[str, Any]:
    """Queries one by one through the engine: milliseconds of both stages and of the whole call."""
    import torch

    from indexer.ann.index import set_threads
    from indexer.store.reader import StoreReader
    from service.search.engine import Engine
    from service.search.values import QueryLimits, Ranking, SearchQuery

    torch.set_num_threads(1)
    set_threads(1)
    encoder = build_encoder()
    opened = time.perf_counter()
    limits = QueryLimits(max_texts=64, max_text_chars=100, max_candidates=1000, default_candidates=CANDIDATES)
    engine = Engine(encoder, lambda: StoreReader.open(folder / "store"), limits=limits, cache_entries=10_000)
    open_seconds = time.perf_counter() - opened
    texts_QD = queries_of(folder)
    for number, row_D in enumerate(texts_QD):
        engine.texts.put((FINGERPRINT, f"query {number}"), row_D)
    whole, stages = [], []
    for number in range(len(texts_QD)):
        query = SearchQuery(text=f"query {number}", ranking=Ranking(k=10, candidates=CANDIDATES))
        started = time.perf_counter()
        result = engine.search([query])[0]
        whole.append(1000 * (time.perf_counter() - started))
        spent = result.source.stage_seconds
        stages.append([1000 * spent["candidates"], 1000 * spent["rerank"]])
    gc.collect()  # garbage does not count as the service's memory
    memory = resident_mib()
    engine.close()
    settled = np.array(stages[WARM_UP:])
    both = settled.sum(axis=1)
    return {
        "open_seconds": round(open_seconds, 1),
        "queries": len(both),
        "stage1_ms_p50": round(float(np.median(settled[:, 0])), 2),
        "rerank_ms_p50": round(float(np.median(settled[:, 1])), 2),
        "both_ms_p50": round(float(np.median(both)), 2),
        "both_ms_p95": round(float(np.percentile(both, 95)), 2),
        "whole_ms_p50": round(float(np.median(whole[WARM_UP:])), 2),
        **memory,
    }


def check(folder: Path, segments: int) -> dict[str, Any]:
    """Recall@100 of stage 1 against an exact search over the same vectors, with queries that nothing was tuned on."""
    from indexer.store.build_index import SCORE_TOLERANCE, least_scores
    from indexer.store.reader import StoreReader
    from indexer.store.vectors import BLOCK_ROWS

    with StoreReader.open(folder / "store") as reader:
        asked_QD = reader.correction.queries(queries_of(folder), "text", "videos")
        scores_Qk, _ = reader.search_videos(asked_QD, CANDIDATES)
        ids_N = reader.segment_ids()
        blocks = (ids_N[start : start + BLOCK_ROWS] for start in range(0, len(ids_N), BLOCK_ROWS))
        rows = (reader.correction.items(reader.segment_embeddings(ids), "videos") for ids in blocks)
        least_Q = least_scores(asked_QD, rows, CANDIDATES)
    return {
        "queries": len(asked_QD),
        "recall_at_100": round(float(np.mean(scores_Qk >= least_Q[:, None] - SCORE_TOLERANCE)), 5),
    }


def queries_of(folder: Path) -> Any:
    """Captions ``(Q, D)`` that are not in the store."""
    return vectors_in(folder).draw(QUERIES, np.random.default_rng(2))[1]


PHASES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "fill": fill,
    "publish": publish,
    "serve": serve,
    "check": check,
}


def measure(segments: int, folder: Path, report: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """All phases, each in a process of its own; seconds and peak of resident MiB of each beside what it found."""
    found: dict[str, Any] = {"segments": segments, "dim": DIM, "frames": FRAMES}
    folder.mkdir(parents=True, exist_ok=True)
    vectors_in(folder)
    for name in PHASES:
        found[name] = run_phase(name, segments, folder)
        report(f"{name}: {json.dumps(found[name])}")
    return found


def run_phase(name: str, segments: int, folder: Path) -> dict[str, Any]:
    """One phase in a process of its own: its seconds, its memory and what it found."""
    command = [sys.executable, "-m", "benchmarks.million", "--phase", name]
    command += ["--segments", str(segments), "--folder", str(folder)]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return {"seconds": round(time.perf_counter() - started, 1), **json.loads(done.stdout.splitlines()[-1])}


def resident_mib() -> dict[str, float]:
    """Resident memory of this process by the kernel: its peak, and what is its own and of files now."""
    wanted = {"VmHWM": "peak_mib", "RssAnon": "own_mib", "RssFile": "files_mib"}
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {wanted[key[0][:-1]]: round(int(key[1]) / 1024, 1) for key in lines if key[0][:-1] in wanted}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the store is made; default: a temporary folder, removed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--phase", choices=[*PHASES], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phase is not None:
        result = PHASES[given.phase](given.folder, given.segments)
        print(json.dumps({**resident_mib(), **result}))  # a phase may have looked while it was at work
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(given.segments, given.folder or Path(temporary), lambda line: print(line, flush=True))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
