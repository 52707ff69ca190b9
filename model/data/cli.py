"""Commands for data sets: ``emcl data check``, ``emcl data compress``. Mounted by ``model.cli``.

Heavy modules are imported inside the commands, so that ``--help`` answers at once. Errors of the user are raised as
``ValueError`` or ``OSError``, which ``service.cli`` prints as one line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(help="Check and compress data sets.", no_args_is_help=True)


@app.command()
def check(
    config: Annotated[
        Path | None, typer.Option(help="A training configuration (its `data` section), or such a section alone.")
    ] = None,
    kind: Annotated[
        Literal["msrvtt", "msvd", "lsmdc", "activitynet", "didemo", "vatex"] | None,
        typer.Option(help="Instead of --config: which set lies in --root and --annotations."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of the videos.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="The folder of the annotation files.")] = None,
    train_split: Annotated[
        Literal["9k", "7k", "full"] | None, typer.Option(help="MSR-VTT only: which training set and protocol.")
    ] = None,
    decode: Annotated[bool, typer.Option(help="Also decode every video.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the findings to this file.")] = None,
) -> None:
    """Count a set's videos and captions, and list all that are missing; exit code 1 if it is not whole."""
    from model.data.check import check_splits, describe, overlaps
    from model.data.sources import load_stored_set, parse_stored_set, read_splits

    own = {"kind": kind, "root": root, "annotations": annotations, "train_split": train_split}
    given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    if (config is None) == (not given):
        raise typer.BadParameter("give either --config, or --kind with --root and --annotations")
    chosen = load_stored_set(config) if config is not None else parse_stored_set(given, "the command line")
    splits = read_splits(chosen)
    checks = check_splits(splits, decode_workers=workers if decode else 0)
    shared = overlaps(splits)
    typer.echo("\n".join([describe(checks), *shared]))
    if json_file is not None:
        findings = {
            "data": chosen.model_dump(mode="json"),
            "splits": [item.as_dict() for item in checks],
            "overlaps": shared,
        }
        json_file.write_text(json.dumps(findings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (shared and not chosen.allow_overlap) or not all(item.is_whole for item in checks):
        raise typer.Exit(1)


@app.command()
def compress(
    source: Annotated[Path, typer.Argument(help="Folder of videos.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the small ones; the same names, ending in .mp4.")],
    fps: Annotated[float, typer.Option(min=0.1, max=60, help="Frames per second.")] = 3.0,
    short_side: Annotated[int, typer.Option(min=16, help="Pixels of the shorter side; smaller videos stay.")] = 224,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make small copies that decode fast: 3 frames per second, short side 224, upright, no sound.

    What is there already is left alone, so an interrupted run can be repeated. Exit code 1 if a video failed.
    """
    from model.data.compress import CompressSettings, compress_folder

    settings = CompressSettings(fps=fps, short_side=short_side)
    report = compress_folder(source, destination, settings, workers=workers)
    for name, reason in report.failed:
        typer.echo(f"failed: {name}: {reason}", err=True)
    typer.echo(f"{report.written} written, {report.kept} there already, {len(report.failed)} failed")
    if report.failed:
        raise typer.Exit(1)
