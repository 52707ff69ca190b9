"""Commands of the model: ``emcl train``, ``emcl evaluate``, ``emcl synthesize``. Mounted by ``service.cli``.

Heavy modules are imported inside the commands, so that ``--help`` answers at once. Errors of the user are raised as
``ValueError`` or ``OSError``, which ``service.cli`` prints as one line.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help="Train and evaluate models.", no_args_is_help=True)

_CAPTIONS_FILE = "captions.jsonl"


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="Settings of the run, YAML or JSON (see configs/demo.yaml).")],
    output: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log, point to resume from.")] = Path(
        "runs/train"
    ),
    resume: Annotated[bool, typer.Option(help="Continue the run in --output where it stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
) -> None:
    """Train a model from a configuration; a run that was killed continues with --resume."""
    from model.train import train as run_training
    from model.train_config import load_train_config

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = run_training(load_train_config(config), output, resume=resume, device=device)
    typer.echo(f"trained: {path}  (log: {output / 'log.jsonl'})")


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Option(help="JSON lines of {video, captions}, or a folder with such a captions.jsonl.")
    ],
    checkpoint: Annotated[str, typer.Option(help="'demo', or a checkpoint's path (NAME.safetensors).")] = "demo",
    candidates: Annotated[int, typer.Option(min=1, help="Candidates that stage 1 hands to the reranking.")] = 100,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
) -> None:
    """Measure retrieval in both directions, ranking as the service does, with and without EMCL."""
    from model import evaluate as evaluation
    from model.data.manifest import read_manifest
    from model.encoder import load_encoder

    clips = read_manifest(data / _CAPTIONS_FILE if data.is_dir() else data)
    encoder = load_encoder(checkpoint, device=device)
    corpus = evaluation.encode_corpus(encoder, clips)
    rows = evaluation.evaluate_features(encoder, corpus, candidates=candidates)
    typer.echo(evaluation.table(rows))
    if json_file is not None:
        facts = {"fingerprint": encoder.fingerprint, "emcl": encoder.config.emcl.model_dump(mode="json")}
        sizes = {"videos": len(clips), "captions": len(corpus.text_TD), "candidates": candidates}
        text = json.dumps(evaluation.report(rows, **facts, **sizes), indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")


@app.command()
def synthesize(
    output: Annotated[Path, typer.Option(help="Folder for the clips and captions.jsonl.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="No two splits share a combination.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    captions: Annotated[int, typer.Option(min=1, max=2, help="Captions per clip.")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Write the demo corpus: H.264 clips of moving shapes with captions and tags."""
    from model.synthetic import write_corpus

    written = write_corpus(output, split=split, count=count, seed=seed, captions=captions, workers=workers)
    typer.echo(f"{count} clips, captions in {written}")
