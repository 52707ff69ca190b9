"""Which EMCL settings rank best? A coarse grid on labelled pairs, each setting against the same ranking without EMCL.

    python benchmarks/sweep_emcl.py --data val/ --checkpoint demo

Choose on a validation split and report on another: the best of sixty settings is lucky by construction. Wins and
losses are queries whose match rises or falls; ``p`` is the two-sided sign test on them, not corrected for the size of
the grid.
"""

from __future__ import annotations

import argparse
import itertools
from math import comb
from pathlib import Path

import numpy as np

from model.config import EMCLConfig
from model.data.manifest import read_manifest
from model.encoder import load_encoder
from model.evaluate import CANDIDATES, encode_corpus, fill_behind, rerank, stage_one, with_emcl
from model.metrics import ranks_of_matches

GRID = {
    "beta": (0.05, 0.1, 0.2, 0.3, 0.5),
    "sigma": (0.03, 0.1, 0.3, 1.0),
    "num_bases": (8, 32),
    "iterations": (3, 9),
}
REFERENCE_SIGMAS = (0.03, 1.0)


def settings():
    for values in itertools.product(*GRID.values()):
        yield EMCLConfig(mode="channel", **dict(zip(GRID, values, strict=True)))
    for sigma in REFERENCE_SIGMAS:
        yield EMCLConfig.reference(sigma=sigma)


def ranks_of(ranked):
    """Ranks of all queries, texts first and then videos (one caption per video)."""
    return np.concatenate([ranks_of_matches(ranked.text_to_video_TV), ranks_of_matches(ranked.video_to_text_VT)])


def sign_test(wins: int, losses: int) -> float:
    total = wins + losses
    tail = sum(comb(total, k) for k in range(min(wins, losses) + 1)) / 2**total
    return min(1.0, 2 * tail)


def describe(name: str, ranks, base) -> tuple[float, str]:
    half = len(ranks) // 2
    wins, losses = int(np.sum(ranks < base)), int(np.sum(ranks > base))
    reciprocal = float(np.mean(1 / (ranks + 1)))
    first = [100 * np.mean(part <= 0) for part in (ranks[:half], ranks[half:])]
    cells = [name, f"{first[0]:.1f}", f"{first[1]:.1f}", f"{100 * reciprocal:.2f}", str(wins), str(losses)]
    return reciprocal, "| " + " | ".join([*cells, f"{sign_test(wins, losses):.2f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl, one caption per video")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.checkpoint, device=arguments.device)
    corpus = encode_corpus(encoder, read_manifest(arguments.data / "captions.jsonl"))
    plain = with_emcl(encoder, EMCLConfig(beta=0.0))
    first = stage_one(plain, corpus, frozen_map=True)
    base = ranks_of(fill_behind(rerank(plain, corpus, first, candidates=CANDIDATES, how="none"), first))
    print("| EMCL | R@1 t→v | R@1 v→t | MRR | wins | losses | p |\n|---|---|---|---|---|---|---|")
    print(describe("none", base, base)[1], flush=True)
    lines = []
    for config in settings():
        variant = with_emcl(encoder, config)
        first = stage_one(variant, corpus, frozen_map=True)
        ranks = ranks_of(fill_behind(rerank(variant, corpus, first, candidates=CANDIDATES, how="emcl"), first))
        name = f"{config.mode} β {config.beta:g} σ {config.sigma:g} K {config.num_bases} T {config.iterations}"
        lines.append(describe(name, ranks, base))
    for _, line in sorted(lines, reverse=True):
        print(line)


if __name__ == "__main__":
    main()
