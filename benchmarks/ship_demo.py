"""From a finished training run to the shipped demo model: calibrates on validation, scores on test, fills the report.

    emcl train --config configs/demo.yaml --output runs/demo
    python -m benchmarks.ship_demo --run runs/demo --work var/ship

Writes model/assets/demo.safetensors, .json, demo-training.jsonl and demo-scores.json, the ``emcl:`` line of
configs/demo.yaml, and the tables of docs/demo-model.md (between their comment marks). The choice is that of
``emcl calibrate`` with its usual grid, and stands in the checkpoint with how sure it is. The test split is touched
last, once everything is chosen. With ``--joint results.jsonl`` (from joint_training.py) that table is filled too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

from benchmarks.joint_training import table as table_of_joint
from benchmarks.short_queries import measure_short_queries, scene_of
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import load_mapping
from model.data.manifest import read_manifest
from model.data.validation import data_digest
from model.demo.corpus import write_corpus
from model.demo.scene import recall_ceiling
from model.encoder import load_encoder
from model.evaluate.run import encode_corpus, evaluate_features, report, table
from model.study.calibrate import Calibration, Grid, calibrate, record, verdict
from model.study.calibrate import table as grid_table
from model.study.per_video_ranks import variant

ROOT = Path(__file__).parents[1]
ASSETS, CONFIG, PAGE = ROOT / "model" / "assets", ROOT / "configs" / "demo.yaml", ROOT / "docs" / "demo-model.md"
CLIPS = 500


def clips_of(work: Path, split: str):
    folder = work / split
    if not (folder / "captions.jsonl").exists():
        write_corpus(folder, split=split, count=CLIPS, captions=1)
    return read_manifest(folder / "captions.jsonl")


def scenes_of(clips):
    return [scene_of(clip.path.stem) for clip in clips]


def fill(mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in the report."""
    page = PAGE.read_text(encoding="utf-8")
    filled, count = re.subn(
        rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL
    )
    assert count == 1, f"{PAGE} needs one pair of {mark} marks"
    PAGE.write_text(filled, encoding="utf-8")


def choose(encoder, clips) -> Calibration:
    """The best of the grid by mean reciprocal rank; the report shows the ends of the list, and the verdict."""
    found = calibrate(encoder, encode_corpus(encoder, clips), Grid())
    fill("sweep", grid_table(found) + "\n\n" + verdict(found))
    fill("ceiling-val", f"{recall_ceiling(scenes_of(clips))[0]:.1f} %")
    return found


def ship(run: Path, work: Path) -> None:
    """Store the checkpoint with the chosen settings, and write EMCL's into the configuration."""
    encoder, clips = (
        load_encoder(str(run / "model.safetensors"), device="cpu", emcl="configured"),
        clips_of(work, "val"),
    )
    found = choose(encoder, clips)
    config = found.choice()
    net = variant(encoder, config).net
    net.config = encoder.config.model_copy(update={"emcl": config, "search": found.search})
    facts = {"data": "synthetic", "data_digest": data_digest(clips), "split": "val", "videos": len(clips)}
    metadata = {**load_mapping(run / "model.json")["metadata"], "calibration": record(found, config, facts)}
    save_checkpoint(net, ASSETS / "demo.safetensors", metadata=metadata, dtype="fp16")
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
    encoder = load_encoder("demo", device="cpu", emcl="configured")
    clips = clips_of(work, "test")
    corpus, scenes = encode_corpus(encoder, clips), scenes_of(clips)
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
    """Print the table of joint_training.py into the report."""
    fill("joint", table_of_joint([json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished `emcl train`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the corpora, made if absent")
    parser.add_argument("--joint", type=Path, help="results.jsonl of joint_training.py")
    arguments = parser.parse_args()
    ship(arguments.run, arguments.work)
    score(arguments.work)
    if arguments.joint is not None:
        fill_joint(arguments.joint)


if __name__ == "__main__":
    main()
