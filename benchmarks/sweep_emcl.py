"""Which EMCL settings rank best? A coarse grid on labelled pairs, each setting against the same ranking without EMCL.

    python benchmarks/sweep_emcl.py --data val/ --checkpoint demo

Choose on a validation split and report on another: the best of eighty settings is lucky by construction. Wins and
losses are queries whose match rises or falls; ``p`` is the two-sided sign test on them, not corrected for the size of
the grid.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass, field
from math import comb
from pathlib import Path

import numpy as np
from tqdm import tqdm

from model.config import EMCLConfig
from model.data.manifest import read_manifest
from model.encoder import load_encoder
from model.evaluate import CANDIDATES, encode_corpus, fill_behind, rerank, stage_one, with_emcl
from model.metrics import ranks_of_matches

DEFAULTS = {
    "betas": (0.05, 0.1, 0.2, 0.3, 0.5),
    "sigmas": (0.03, 0.1, 0.3, 1.0),
    "bases": (8, 32),
    "iterations": (3, 9),
}
REFERENCE_SIGMAS = (0.03, 1.0)


@dataclass(frozen=True, order=True)
class Result:
    """One setting; sorts by mean reciprocal rank."""

    reciprocal_rank: float
    line: str
    config: EMCLConfig | None = field(default=None, compare=False)


def settings(betas, sigmas, bases, iterations):
    for beta, sigma, count, steps in itertools.product(betas, sigmas, bases, iterations):
        yield EMCLConfig(mode="channel", beta=beta, sigma=sigma, num_bases=count, iterations=steps)
    for sigma in REFERENCE_SIGMAS:
        yield EMCLConfig.reference(sigma=sigma)


def ranks_with(encoder, corpus, how):
    """Ranks of all queries, texts first and then videos (one caption per video)."""
    first = stage_one(encoder, corpus, frozen_map=True)
    ranked = fill_behind(rerank(encoder, corpus, first, candidates=CANDIDATES, how=how), first)
    return np.concatenate([ranks_of_matches(ranked.text_to_video_TV), ranks_of_matches(ranked.video_to_text_VT)])


def sign_test(wins: int, losses: int) -> float:
    total = wins + losses
    tail = sum(comb(total, k) for k in range(min(wins, losses) + 1)) / 2**total
    return min(1.0, 2 * tail)


def result_of(name: str, ranks, base, config: EMCLConfig | None = None) -> Result:
    half = len(ranks) // 2
    wins, losses = int(np.sum(ranks < base)), int(np.sum(ranks > base))
    reciprocal = float(np.mean(1 / (ranks + 1)))
    first = [100 * np.mean(part <= 0) for part in (ranks[:half], ranks[half:])]
    cells = [name, f"{first[0]:.1f}", f"{first[1]:.1f}", f"{100 * reciprocal:.2f}", str(wins), str(losses)]
    return Result(reciprocal, "| " + " | ".join([*cells, f"{sign_test(wins, losses):.2f}"]) + " |", config)


def sweep(encoder, corpus, *, betas, sigmas, bases, iterations) -> tuple[Result, list[Result]]:
    """The ranking without EMCL, and every setting, best first."""
    base = ranks_with(with_emcl(encoder, EMCLConfig(beta=0.0)), corpus, "none")
    results = []
    for config in tqdm(list(settings(betas, sigmas, bases, iterations)), desc="sweep", unit="setting"):
        ranks = ranks_with(with_emcl(encoder, config), corpus, "emcl")
        name = f"{config.mode} β {config.beta:g} σ {config.sigma:g} K {config.num_bases} T {config.iterations}"
        results.append(result_of(name, ranks, base, config))
    return result_of("none", base, base), sorted(results, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl, one caption per video")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--device", default="auto")
    for name, values in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(values[0]), nargs="+", default=values)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.checkpoint, device=arguments.device)
    corpus = encode_corpus(encoder, read_manifest(arguments.data / "captions.jsonl"))
    base, results = sweep(encoder, corpus, **{name: getattr(arguments, name) for name in DEFAULTS})
    print("| EMCL | R@1 t→v | R@1 v→t | MRR | wins | losses | p |\n|---|---|---|---|---|---|---|")
    print(base.line)
    for result in results:
        print(result.line)


if __name__ == "__main__":
    main()
