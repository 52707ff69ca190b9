"""From a finished training run to the shipped demo model: chooses EMCL on validation, scores on test, fills the report.

    emcl train --config configs/demo.yaml --output runs/demo
    python benchmarks/ship_demo.py --run runs/demo --work var/ship

Writes model/assets/demo.safetensors, .json, demo-training.jsonl and demo-scores.json, the ``emcl:`` line of
configs/demo.yaml, and the tables of docs/demo-model.md (between their comment marks). The test split is touched last,
once everything is chosen. With ``--joint results.jsonl`` (from joint_training.py) that table is filled too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from sweep_emcl import DEFAULTS, sweep

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import EMCLConfig, load_mapping
from model.data.manifest import read_manifest
from model.encoder import load_encoder
from model.evaluate import encode_corpus, evaluate_features, report, table, with_emcl
from model.short_queries import measure_short_queries
from model.synthetic import recall_ceiling, scene_of, write_corpus

ROOT = Path(__file__).parents[1]
ASSETS, CONFIG, PAGE = ROOT / "model" / "assets", ROOT / "configs" / "demo.yaml", ROOT / "docs" / "demo-model.md"
CLIPS = 500
LINES_OF_SWEEP = 5  # best and worst settings that the report shows


def corpus_of(encoder, work: Path, split: str):
    folder = work / split
    if not (folder / "captions.jsonl").exists():
        write_corpus(folder, split=split, count=CLIPS, captions=1)
    clips = read_manifest(folder / "captions.jsonl")
    return encode_corpus(encoder, clips), [scene_of(clip.path.stem) for clip in clips]


def fill(mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in the report."""
    page = PAGE.read_text(encoding="utf-8")
    filled, count = re.subn(
        rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL
    )
    assert count == 1, f"{PAGE} needs one pair of {mark} marks"
    PAGE.write_text(filled, encoding="utf-8")


def choose(encoder, work: Path) -> EMCLConfig:
    """The best of the sweep by mean reciprocal rank; the report shows the ends of the list."""
    corpus, scenes = corpus_of(encoder, work, "val")
    base, results = sweep(encoder, corpus, **DEFAULTS)
    head = "| EMCL | R@1 t→v | R@1 v→t | MRR | wins | losses | p |\n|---|---|---|---|---|---|---|"
    rest = f"| … {len(results) - 2 * LINES_OF_SWEEP} more settings | | | | | | |"
    lines = [result.line for result in results]
    fill("sweep", "\n".join([head, base.line, *lines[:LINES_OF_SWEEP], rest, *lines[-LINES_OF_SWEEP:]]))
    fill("ceiling-val", f"{recall_ceiling(scenes)[0]:.1f} %")
    return results[0].config


def ship(run: Path, config: EMCLConfig) -> None:
    """Store the checkpoint with the chosen EMCL and write that into the configuration."""
    variant = with_emcl(load_encoder(str(run / "model.safetensors"), device="cpu"), config)
    metadata = load_mapping(run / "model.json")["metadata"]
    save_checkpoint(variant.net, ASSETS / "demo.safetensors", metadata=metadata, dtype="fp16")
    load_checkpoint(ASSETS / "demo.safetensors")
    shutil.copyfile(run / "log.jsonl", ASSETS / "demo-training.jsonl")
    line = (
        f"  emcl: {{mode: {config.mode}, num_bases: {config.num_bases}, iterations: {config.iterations}, "
        f"sigma: {config.sigma}, beta: {config.beta}}}"
    )
    text, count = re.subn(r"^  emcl: \{.*\}$", line, CONFIG.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert count == 1, f"{CONFIG} needs one line '  emcl: {{…}}'"
    CONFIG.write_text(text, encoding="utf-8")


def score(work: Path) -> None:
    """Score the shipped checkpoint on the test split, full captions and short queries."""
    encoder = load_encoder("demo", device="cpu")
    corpus, scenes = corpus_of(encoder, work, "test")
    rows = evaluate_features(encoder, corpus)
    short = measure_short_queries(encoder, corpus, scenes)
    facts = {"fingerprint": encoder.fingerprint, "emcl": encoder.config.emcl.model_dump(mode="json")}
    scores = report(rows, **facts, videos=len(scenes), ceiling=recall_ceiling(scenes), short_queries=short)
    (ASSETS / "demo-scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    fill("scores", table(rows))
    lines = [f"| {name} | {row['P@1']:.1f} | {row['P@5']:.1f} |" for name, row in short.items()]
    fill("short", "\n".join(["| ranking | P@1 | P@5 |", "|---|---|---|", *lines]))
    fill("ceiling-test", f"{recall_ceiling(scenes)[0]:.1f} %")


def fill_joint(results: Path) -> None:
    """Average the runs of joint_training.py over their seeds."""
    by_variant = defaultdict(list)
    for line in results.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        by_variant[entry["variant"]].append([np.mean(entry["R@1"][how]) for how in ("none", "emcl")])
    lines = ["| EMCL in the loss | seeds | R@1 without EMCL | R@1 with EMCL |", "|---|---|---|---|"]
    for variant, runs in by_variant.items():
        without, with_pass = (" ".join(f"{value:.1f}" for value in column) for column in zip(*runs, strict=True))
        lines.append(f"| {variant} | {len(runs)} | {without} | {with_pass} |")
    fill("joint", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished `emcl train`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpora, made if absent")
    parser.add_argument("--joint", type=Path, help="results.jsonl of joint_training.py")
    arguments = parser.parse_args()
    ship(arguments.run, choose(load_encoder(str(arguments.run / "model.safetensors"), device="cpu"), arguments.work))
    score(arguments.work)
    if arguments.joint is not None:
        fill_joint(arguments.joint)


if __name__ == "__main__":
    main()
