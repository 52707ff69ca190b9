"""Commands of the model: ``train``, ``evaluate``, ``synthesize``, ``import-checkpoint``. Mounted by ``service.cli``.

Heavy modules are imported inside the commands, so that ``--help`` answers at once. Errors of the user are raised as
``ValueError`` or ``OSError``, which ``service.cli`` prints as one line.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.data.cli import app as data_app

app = typer.Typer(help="Train and evaluate models.", no_args_is_help=True)
app.add_typer(data_app, name="data")


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
        Path,
        typer.Option(
            help="JSON lines of {video, captions}, a folder with such a captions.jsonl, or the configuration of a data "
            "set (YAML or JSON, see configs/msrvtt.yaml)."
        ),
    ],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split of a data set.")] = "test",
    allow_missing: Annotated[
        bool, typer.Option(help="Measure although videos are missing; the report counts them.")
    ] = False,
    checkpoint: Annotated[
        str,
        typer.Option(help="'demo', a checkpoint's path, or an open_clip name with --pretrained."),
    ] = "demo",
    pretrained: Annotated[str | None, typer.Option(help="Tag or weights file of an open_clip model.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates that stage 1 hands to the reranking.")] = 100,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
) -> None:
    """Measure retrieval in both directions, ranking as the service does, with and without EMCL."""
    from model import evaluate as evaluation
    from model.data.sources import open_for_evaluation
    from model.encoder import load_encoder

    chosen = open_for_evaluation(data, split, allow_missing=allow_missing)
    encoder = load_encoder(checkpoint, pretrained=pretrained, device=device)
    corpus = evaluation.encode_corpus(encoder, chosen.clips)
    rows = evaluation.evaluate_features(encoder, corpus, candidates=candidates)
    typer.echo(evaluation.table(rows))
    if chosen.videos_lost:
        typer.echo(f"{chosen.videos_lost} videos of the {split} split are missing: not comparable with the whole set")
    if json_file is not None:
        facts = {"fingerprint": encoder.fingerprint, "emcl": encoder.config.emcl.model_dump(mode="json")}
        sizes = {
            "videos": len(chosen.clips),
            "videos_lost": chosen.videos_lost,
            "captions": len(corpus.text_TD),
            "candidates": candidates,
        }
        data_set = {"data": chosen.name, "split": split}
        text = json.dumps(evaluation.report(rows, **facts, **data_set, **sizes), indent=2)
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


@app.command("import-checkpoint")
def import_others(
    source: Annotated[Path, typer.Argument(help="File of EMCL-Net, CLIP4Clip or CLIP (see docs/importing.md).")],
    output: Annotated[Path, typer.Option(help="Checkpoint to write: NAME.safetensors, with NAME.json beside it.")],
    kind: Annotated[
        Literal["auto", "emcl-net", "clip4clip", "clip"],
        typer.Option(help="What wrote the file; auto asks where the names of its tensors do not tell."),
    ] = "auto",
    max_words: Annotated[
        int, typer.Option(min=3, max=1024, help="Tokens per text; the paper has 64 for ActivityNet.")
    ] = 32,
    max_frames: Annotated[
        int, typer.Option(min=1, max=512, help="Frames per video; the paper has 64 for ActivityNet.")
    ] = 12,
    emcl: Annotated[
        Literal["auto", "reference", "channel"],
        typer.Option(help="EMCL's mode and the rules that go with it; auto is reference for emcl-net, else channel."),
    ] = "auto",
    activation: Annotated[
        Literal["quick-gelu", "gelu"], typer.Option(help="quick-gelu is OpenAI's; LAION's CLIPs need gelu.")
    ] = "quick-gelu",
    vision_head_width: Annotated[
        int | None, typer.Option(min=1, help="Channels per head of the image tower.", show_default="CLIP's, mostly 64")
    ] = None,
    text_head_width: Annotated[
        int | None, typer.Option(min=1, help="Channels per head of the text tower.", show_default="64")
    ] = None,
    allow_unmatched: Annotated[
        bool, typer.Option("--allow-unmatched", help="List what does not fit instead of refusing the file.")
    ] = False,
) -> None:
    """Convert a checkpoint of EMCL-Net, CLIP4Clip or CLIP; nothing in it is run, nothing left out in silence."""
    from model.importing import ImportOptions, import_checkpoint

    options = ImportOptions(
        kind=kind,
        max_words=max_words,
        max_frames=max_frames,
        emcl=emcl,
        activation=activation,
        vision_head_width=vision_head_width,
        text_head_width=text_head_width,
        allow_unmatched=allow_unmatched,
    )
    typer.echo(import_checkpoint(source, output, options).text())
