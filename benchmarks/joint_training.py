"""Does EMCL in the training loss help? Equal steps with and without it, several seeds, scored on held-out clips.

    emcl synthesize --split val --captions 1 --output val/
    python benchmarks/joint_training.py --config configs/demo.yaml --data val/ --output joint/

Every run starts from scratch, or with ``--start-from`` from the same checkpoint. Lines go to OUTPUT/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from model.config import EMCLConfig
from model.data.manifest import read_manifest
from model.encoder import load_encoder
from model.evaluate import CANDIDATES, encode_corpus, fill_behind, measure, rerank, stage_one
from model.train import train
from model.train_config import load_train_config

VARIANTS = {
    "none": None,
    "channel 0.1": EMCLConfig(beta=0.1),
    "reference 3": EMCLConfig.reference(),
    "channel 0.3": EMCLConfig(beta=0.3),
}


def run_config(base, seed: int, emcl: EMCLConfig | None, arguments):
    """The demo's configuration with fewer steps, and EMCL in the loss or not; seeds change weights and batches."""
    rate = arguments.learning_rate or base.optimiser.learning_rate
    # Full captions and random batches align soonest, so that short runs tell something.
    random = {"hard_negatives": 0.0, "short_captions": 0.0, "object_warmup_steps": 0, "object_steps": 0.0}
    data = {"seed": 100 + seed, "validation_clips": 0, **random}
    warmup = {"warmup_steps": arguments.warmup, "learning_rate": rate, "encoder_learning_rate": rate}
    return base.model_copy(
        update={
            "model": base.model.model_copy(update={"emcl": emcl or EMCLConfig()}),
            "data": base.data.model_copy(update=data),
            "optimiser": base.optimiser.model_copy(update=warmup),
            "joint_emcl": emcl is not None,
            "seed": seed,
            "steps": arguments.steps,
            "batch_size": arguments.batch_size,
            "start_from": arguments.start_from,
            "checkpoint_every": arguments.steps,
        }
    )


def scores(path: Path, clips):
    encoder = load_encoder(str(path))
    corpus = encode_corpus(encoder, clips)
    first = stage_one(encoder, corpus, frozen_map=True)
    found = {}
    for how in ("none", "emcl"):
        ranked = fill_behind(rerank(encoder, corpus, first, candidates=CANDIDATES, how=how), first)
        row = measure(how, ranked, corpus)
        found[how] = [row.text_to_video.recall[1], row.video_to_text.recall[1]]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--start-from", type=Path)
    parser.add_argument("--variants", nargs="+", default=["none", "channel 0.1", "reference 3"], choices=VARIANTS)
    arguments = parser.parse_args()
    base, clips = load_train_config(arguments.config), read_manifest(arguments.data / "captions.jsonl")
    for seed in range(arguments.seeds):
        for name in arguments.variants:
            output = arguments.output / f"{name.replace(' ', '-')}-{seed}"
            path = train(run_config(base, seed, VARIANTS[name], arguments), output)
            line = {"variant": name, "seed": seed, "steps": arguments.steps, "R@1": scores(path, clips)}
            with (arguments.output / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
