"""Does EMCL in the training loss help? The same fine-tuning with and without it, from several trained models.

    emcl synthesize --split val --count 1000 --captions 1 --output var/joint/val
    python -m benchmarks.joint_training --config configs/demo.yaml --data var/joint/val --output var/joint \\
        --start-from model/assets/demo.safetensors runs/seed-1/model.safetensors runs/seed-2/model.safetensors

Each ``--start-from`` is one training seed. From each of them every variant makes the same number of steps with the
same batches; only the EM pass in the loss differs. The baseline is also ranked with EMCL at inference only, in both
modes. Scores are on held-out clips, paired: a row's difference is to the baseline of the same seed, query by query.
Lines go to OUTPUT/results.jsonl as runs end, a run whose line is there is not made again; the table goes to
OUTPUT/table.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.clip.preprocess import Preprocess
from model.config import EMCLConfig
from model.data.batches import stack_clips
from model.data.clips import load_frames
from model.data.manifest import read_manifest
from model.encoder import Encoder, load_encoder
from model.evaluate.corpus import Corpus
from model.evaluate.metrics import ranks_of_matches
from model.evaluate.run import CANDIDATES, fill_behind, rerank, stage_one, with_emcl
from model.study.significance import bootstrap
from model.train.config import TrainConfig, load_train_config
from model.train.run import train

CHANNEL, REFERENCE = EMCLConfig(beta=0.1), EMCLConfig.reference()


@dataclass(frozen=True, kw_only=True)
class Variant:
    """EMCL in the loss (``None``: the baseline), the share of steps in which it ramps up, and what ranks the result."""

    emcl: EMCLConfig | None
    ranked_with: tuple[EMCLConfig | None, ...]
    ramp: float = 0.0


def joint(emcl: EMCLConfig, *, ramp: float = 0.0) -> Variant:
    return Variant(emcl=emcl, ranked_with=(None, emcl), ramp=ramp)


VARIANTS = {
    "baseline": Variant(emcl=None, ranked_with=(None, CHANNEL, REFERENCE)),
    "joint channel": joint(CHANNEL),
    "joint reference": joint(REFERENCE),
    # Remedies: a stronger correction that comes late, fewer bases, a kernel that keeps bases apart.
    "joint channel, beta 0.5, ramp": joint(EMCLConfig(beta=0.5), ramp=0.7),
    "joint channel, 4 bases": joint(EMCLConfig(beta=0.1, num_bases=4)),
    "joint channel, sigma 0.03": joint(EMCLConfig(beta=0.1, sigma=0.03)),
}


def run_config(base: TrainConfig, seed: int, variant: Variant, arguments: argparse.Namespace) -> TrainConfig:
    """The demo's configuration with fewer steps, full captions and random batches; the seed changes the batches."""
    random = {"hard_negatives": 0.0, "short_captions": 0.0, "object_warmup_steps": 0, "object_steps": 0.0}
    rate = {"warmup_steps": arguments.warmup, "learning_rate": arguments.learning_rate}
    update: dict[str, Any] = {
        "model": base.model.model_copy(update={"emcl": variant.emcl or CHANNEL}),
        "data": base.data.model_copy(update={"seed": 1000 + seed, "validation_clips": 0, **random}),
        "optimiser": base.optimiser.model_copy(
            update={**rate, "encoder_learning_rate": arguments.learning_rate, "final_share": 0.0}
        ),
        "joint_emcl": variant.emcl is not None,
        "emcl_ramp_steps": round(variant.ramp * arguments.steps),
        "seed": seed,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "start_from": arguments.start_from[seed],
        "checkpoint_every": arguments.steps,
    }
    return TrainConfig.model_validate({**base.model_dump(), **{k: _plain(v) for k, v in update.items()}})


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def decoded(clips: Any, base: TrainConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and masks of all clips in batches, decoded once for all checkpoints."""
    size = base.model.clip.custom["vision_cfg"]["image_size"]
    frames = [load_frames(clip, preprocess=Preprocess.square(size), sampling=base.model.sampling) for clip in clips]
    return [stack_clips(frames[at : at + 50], base.model.sampling.max_frames) for at in range(0, len(frames), 50)]


def outcomes(path: Path, clips: Any, batches: list[tuple[np.ndarray, np.ndarray]], variant: Variant) -> dict[str, Any]:
    """Ranks (from 0) of both directions for every way of ranking the result."""
    encoder = load_encoder(str(path), emcl="configured")
    corpus = Corpus(
        text_TD=encoder.encode_texts([clip.captions[0] for clip in clips]),
        features_VFD=np.concatenate([encoder.encode_videos(*batch) for batch in batches]),
        mask_VF=np.concatenate([mask for _, mask in batches]),
        video_of_text_T=np.arange(len(clips)),
    )
    return {_name(emcl): _ranks(encoder, corpus, emcl) for emcl in variant.ranked_with}


def _ranks(encoder: Encoder, corpus: Any, emcl: EMCLConfig | None) -> list[list[float]]:
    chosen = with_emcl(encoder, emcl or EMCLConfig(beta=0.0))
    first = stage_one(chosen, corpus, frozen_map=True)
    ranked = rerank(chosen, corpus, first, candidates=CANDIDATES, how="none" if emcl is None else "emcl")
    filled = fill_behind(ranked, first)
    return [ranks_of_matches(filled.text_to_video_TV).tolist(), ranks_of_matches(filled.video_to_text_VT).tolist()]


def _name(emcl: EMCLConfig | None) -> str:
    return "none" if emcl is None else f"{emcl.mode} beta {emcl.beta:g}"


def table(lines: list[dict[str, Any]]) -> str:
    """Means over seeds; differences to the baseline of the same seed, with intervals over seeds and over clips."""
    found = {(line["variant"], line["seed"], way): line["ranks"][way] for line in lines for way in line["ranks"]}
    seeds = sorted({line["seed"] for line in lines})
    head = "| training | ranked with EMCL | R@1 per seed | R@1 | difference | over seeds | over clips |"
    rows = [head, "|---" * 7 + "|"]
    for variant, way in dict.fromkeys((variant, way) for variant, _, way in found):
        own = [_hits(found[variant, seed, way]) for seed in seeds if (variant, seed, way) in found]
        base = [_hits(found["baseline", seed, "none"]) for seed in seeds if (variant, seed, way) in found]
        rows.append(_row(variant, way, own, base))
    return "\n".join(rows)


def _hits(ranks: list[list[float]]) -> np.ndarray:
    """Percent by clip: the mean of both directions' R@1."""
    return 100 * (np.array(ranks) <= 0).mean(axis=0)


def _row(variant: str, way: str, own: list[np.ndarray], base: list[np.ndarray]) -> str:
    means = [hits.mean() for hits in own]
    cells = [variant, way, " ".join(f"{mean:.1f}" for mean in means), f"{np.mean(means):.1f}"]
    if variant == "baseline" and way == "none":
        return "| " + " | ".join([*cells, "", "", ""]) + " |"
    by_seed = [float((a - b).mean()) for a, b in zip(own, base, strict=True)]
    by_clip = bootstrap(np.mean([a - b for a, b in zip(own, base, strict=True)], axis=0))
    spread = np.std(by_seed, ddof=1) / np.sqrt(len(by_seed)) * T_95.get(len(by_seed), 1.96) if len(by_seed) > 1 else 0
    cells += [f"{np.mean(by_seed):+.2f}", f"± {spread:.2f}", f"[{by_clip.low:+.2f}, {by_clip.high:+.2f}]"]
    return "| " + " | ".join(cells) + " |"


T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Two-sided 95 % points of Student's t by number of seeds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, nargs="+", required=True, help="a trained checkpoint for each seed")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    arguments = parser.parse_args()
    base, clips = load_train_config(arguments.config), read_manifest(arguments.data / "captions.jsonl")
    arguments.output.mkdir(parents=True, exist_ok=True)
    batches = decoded(clips, base)
    results = arguments.output / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.exists() else []
    for name in arguments.variants:
        for seed in range(len(arguments.start_from)):
            if any((line["variant"], line["seed"]) == (name, seed) for line in lines):
                continue
            variant = VARIANTS[name]
            output = arguments.output / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            path = train(run_config(base, seed, variant, arguments), output, resume=output.exists())
            lines.append({"variant": name, "seed": seed, "ranks": outcomes(path, clips, batches, variant)})
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            (arguments.output / "table.md").write_text(table(lines) + "\n", encoding="utf-8")
            print(table(lines), flush=True)


if __name__ == "__main__":
    main()
