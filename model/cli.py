"""Commands of the model: ``train``, ``evaluate``, ``synthesize``, ``import-checkpoint``. Mounted by ``service.cli``.

Heavy modules are imported inside the commands, so that ``--help`` answers at once. Errors of the user are raised as
``ValueError`` or ``OSError``, which ``service.cli`` prints as one line.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.data.cli import app as data_app
from model.export_cli import app as export_app
from model.study_cli import app as study_app

app = typer.Typer(help="Train and evaluate models.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app)
app.add_typer(export_app)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="Settings of the run, YAML or JSON (see configs/demo.yaml).")],
    output: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log, point to resume from.")] = Path(
        "runs/train"
    ),
    resume: Annotated[bool, typer.Option(help="Continue the run in --output where it stopped.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
) -> None:
    """Train a model from a configuration; a run that was killed continues with --resume.

    Several processes, one per GPU: torchrun --nproc-per-node 2 -m service.cli train --config FILE --output FOLDER.
    """
    from model.train.config import load_train_config
    from model.train.distributed import speaks
    from model.train.run import train as run_training

    logging.basicConfig(level=logging.INFO if speaks() else logging.WARNING, format="%(message)s")
    path = run_training(load_train_config(config), output, resume=resume, device=device)
    if speaks():
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
    model: Annotated[
        str,
        typer.Option(
            "--model", "--checkpoint", help="'demo', a checkpoint's path, or an open_clip name with --pretrained."
        ),
    ] = "demo",
    pretrained: Annotated[str | None, typer.Option(help="Tag or weights file of an open_clip model.")] = None,
    protocol: Annotated[
        Literal["per-query", "reference", "frozen"],
        typer.Option(
            help="per-query ranks as the service does; reference runs the EM pass over blocks of 32 texts and 32 "
            "videos, as the released code; frozen is stage 1 alone."
        ),
    ] = "per-query",
    metric_rules: Annotated[
        Literal["corrected", "reference"],
        typer.Option(help="reference counts ties, medians and MSVD's cut points as the released code, mistakes too."),
    ] = "corrected",
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Candidates that stage 1 hands to the reranking (protocol per-query).",
            show_default="the checkpoint's, 100 unless calibrated",
        ),
    ] = None,
    query_bank: Annotated[
        str | None,
        typer.Option(
            help="Also measure QB-Norm, its bank being the captions of this file (JSON lines, or .txt), or of the "
            "'train' split of the data set."
        ),
    ] = None,
    query_bank_size: Annotated[int, typer.Option(min=1, help="Most captions of the bank, drawn at random.")] = 5000,
    query_bank_seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    query_bank_beta: Annotated[float, typer.Option(min=0.01, help="QB-Norm's inverse temperature.")] = 20.0,
    query_bank_top: Annotated[int, typer.Option(min=1, help="Videos that each of its queries marks as hubs.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Also write a report, with published figures beside ours.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    runtime: Annotated[
        Literal["auto", "torch", "torch-compiled", "onnx", "onnx-int8"],
        typer.Option(help="What computes the encoder (see `emcl export`); figures to compare with others want torch."),
    ] = "torch",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Arithmetic of the encoder; auto: fp32 for torch.")
    ] = "auto",
    exports: Annotated[
        Path | None, typer.Option(help="Folder of `emcl export`. Default: beside the checkpoint, or var/exports.")
    ] = None,
) -> None:
    """Measure retrieval in both directions under a protocol, with and without EMCL."""
    from model.evaluate.command import BankOptions, EvaluateRequest, run

    bank = None
    if query_bank is not None:
        bank = BankOptions(
            source=query_bank,
            size=query_bank_size,
            seed=query_bank_seed,
            beta=query_bank_beta,
            top=query_bank_top,
        )
    request = EvaluateRequest(
        data=data,
        split=split,
        allow_missing=allow_missing,
        model=model,
        pretrained=pretrained,
        device=device,
        runtime=runtime,
        precision=precision,
        exports=exports,
        protocol=protocol,
        candidates=candidates,
        rules=metric_rules,
        bank=bank,
        json_file=json_file,
        markdown_file=markdown_file,
    )
    typer.echo(run(request))


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
    from model.demo.corpus import write_corpus

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
    from model.importing.convert import ImportOptions, import_checkpoint

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
