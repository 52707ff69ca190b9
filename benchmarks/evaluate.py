"""What evaluating many texts and videos costs: peak memory, time, and the ratio to the bare matrix products.

    python -m benchmarks.evaluate                                  10,000 texts x 10,000 videos, D 512, F 12
    python -m benchmarks.evaluate --texts 1000 --videos 1000
    python -m benchmarks.evaluate --whole                          … and the whole table of `emcl evaluate`

Every measurement runs in a process of its own, whose peak resident memory (all of it, PyTorch's libraries too) is
asked of the system at its end. *Pairs* scores all pairs by text-conditioned pooling and computes both directions'
metrics, plain and with dual softmax, QB-Norm from a bank of 1,000 texts. *Products* are the inner products of every
text with every frame, which is what no way around exists for; they are timed turn about with the scoring, in blocks of
the same size on the same threads, so that other work on the machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FRAMES, DIM, BANK = 12, 512, 1000
VIDEOS_PER_TURN = 510  # six blocks of videos


def random_corpus(texts: int, videos: int) -> Any:
    """Texts near their videos, so that ranks are neither perfect nor random; unit-normal features as of a real CLIP."""
    import numpy as np

    from model.evaluate.corpus import Corpus

    rng = np.random.default_rng(0)
    topics = rng.standard_normal((videos, DIM), np.float32)
    features = np.empty((videos, FRAMES, DIM), np.float32)
    for frame in range(FRAMES):
        features[:, frame] = topics + rng.standard_normal((videos, DIM), np.float32)
    owner = np.sort(np.arange(texts) % videos)
    return Corpus(
        text_TD=topics[owner] + 4 * rng.standard_normal((texts, DIM), np.float32),
        features_VFD=features,
        mask_VF=np.ones((videos, FRAMES), bool),
        video_of_text_T=owner,
    )


def time_scoring(corpus: Any) -> tuple[Any, dict[str, float]]:
    """All pairs' scores; seconds of that and of the products alone, turn about."""
    import torch

    from model.config import PoolingConfig
    from model.emcl import pairwise_scores

    text, features = torch.from_numpy(corpus.text_TD), torch.from_numpy(corpus.features_VFD)
    mask, pooling = torch.from_numpy(corpus.mask_VF), PoolingConfig()
    scores, columns = torch.empty(len(text), len(features)), text.T.contiguous()
    step = pairwise_scores.CPU_BLOCK_ELEMENTS // (pairwise_scores.TEXTS_AT_ONCE * FRAMES)
    seconds = {"pairs": 0.0, "products": 0.0}
    for turn in range(0, len(features), VIDEOS_PER_TURN):
        rows = slice(turn, turn + VIDEOS_PER_TURN)
        part = features[rows]
        started = time.perf_counter()
        pairwise_scores.score_all_pairs(text, part, mask[rows], pooling, out=scores[:, rows])
        seconds["pairs"] += time.perf_counter() - started
        started = time.perf_counter()
        for v in range(0, len(part), step):
            frames = part[v : v + step].reshape(-1, DIM)
            for t in range(0, len(text), pairwise_scores.TEXTS_AT_ONCE):
                frames @ columns[:, t : t + pairwise_scores.TEXTS_AT_ONCE]
        seconds["products"] += time.perf_counter() - started
    return scores.numpy(), seconds


def measure_pairs(texts: int, videos: int) -> dict[str, Any]:
    import numpy as np
    import torch

    from model.config import PoolingConfig
    from model.emcl.pairwise_scores import score_all_pairs
    from model.evaluate.measure import BankRows, rows_of
    from model.evaluate.protocols import Way
    from model.evaluate.rank import Ranked

    corpus = random_corpus(texts, videos)
    scores, seconds = time_scoring(corpus)

    def score_texts(text_QD: Any) -> Any:
        features, mask = torch.from_numpy(corpus.features_VFD), torch.from_numpy(corpus.mask_VF)
        return score_all_pairs(torch.from_numpy(text_QD), features, mask, PoolingConfig()).numpy()

    def score_videos(features_BFD: Any, mask_BF: Any) -> Any:
        text, features, mask = (torch.from_numpy(part) for part in (corpus.text_TD, features_BFD, mask_BF))
        return score_all_pairs(text, features, mask, PoolingConfig()).numpy().T

    ranked = Ranked(text_to_video_TV=scores, video_to_text_VT=scores.T)
    way = Way(
        name="pooling without EMCL", ranked=ranked, behind=None, score_texts=score_texts, score_videos=score_videos
    )
    queries = corpus.text_TD[:BANK] + np.float32(0.5)
    started = time.perf_counter()
    rows = list(rows_of(way, corpus, bank=BankRows(text_BD=queries, beta=20.0, top=1), temperature=0.01))
    return {
        "scoring_seconds": round(seconds["pairs"], 2),
        "products_seconds": round(seconds["products"], 2),
        "ratio": round(seconds["pairs"] / seconds["products"], 2),
        "metrics_seconds": round(time.perf_counter() - started, 2),
        "R@1": {row.name: row.text_to_video.recall[1] for row in rows},
    }


def measure_whole(texts: int, videos: int) -> dict[str, Any]:
    """Every row of the default protocol, on a net of which only the scoring is used."""
    import torch

    from benchmarks.rerank import build_net
    from model.clip.tokenizer import build_tokenizer
    from model.encoder import Encoder
    from model.evaluate.run import evaluate_features

    net = build_net()
    tokenizer = build_tokenizer(net.config.tokenizer, net.config.clip)
    encoder = Encoder(net, tokenizer, fingerprint="0" * 64, device=torch.device("cpu"))
    corpus = random_corpus(texts, videos)
    started = time.perf_counter()
    rows = evaluate_features(encoder, corpus)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "R@1": {row.name: row.text_to_video.recall[1] for row in rows},
    }


def in_child(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement in a process of its own; its figures and its peak memory in MiB."""
    command = [sys.executable, "-m", "benchmarks.evaluate", "--child", name]
    sizes = ["--texts", str(given.texts), "--videos", str(given.videos), "--threads", str(given.threads)]
    child = subprocess.Popen([*command, *sizes], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    output = child.stdout.read()
    child.stdout.close()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"the measurement {name} ended with exit code {child.returncode}")
    return {**json.loads(output), "peak_mib": round(used.ru_maxrss / 1024)}  # Linux counts KiB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--whole", action="store_true", help="also the whole table, with EM passes (minutes)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", choices=("pairs", "whole"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        import torch

        torch.set_num_threads(given.threads)
        task = measure_pairs if given.child == "pairs" else measure_whole
        print(json.dumps(task(given.texts, given.videos)))
        return 0
    found: dict[str, Any] = {"texts": given.texts, "videos": given.videos, "frames": FRAMES, "dim": DIM}
    found["pairs"] = in_child("pairs", given)
    pairs = found["pairs"]
    print(
        f"{given.texts} texts x {given.videos} videos, D={DIM}, F={FRAMES}, {given.threads} threads: "
        f"scores of all pairs {pairs['scoring_seconds']} s, their products alone {pairs['products_seconds']} s, "
        f"ratio {pairs['ratio']}; metrics of both directions, plain, dual softmax, QB-Norm "
        f"{pairs['metrics_seconds']} s; peak memory {pairs['peak_mib']} MiB (at most 4096 wanted)"
    )
    if given.whole:
        found["whole"] = in_child("whole", given)
        whole = found["whole"]
        print(
            f"the whole table, protocol per-query, 100 candidates: {whole['seconds']} s, peak {whole['peak_mib']} MiB"
        )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
