"""Commands that study a checkpoint on labelled videos: ``calibrate``, ``sweep``, ``report``. Mounted by ``model.cli``.

Heavy modules are imported inside the commands. Errors of the user are ``ValueError`` or ``OSError``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from model.data.video_text import VideoTextSet

app = typer.Typer()

Model = Annotated[str, typer.Option(help="'demo', a checkpoint's path, or an open_clip name with --pretrained.")]
Pretrained = Annotated[str | None, typer.Option(help="Tag or weights file of an open_clip model.")]
Data = Annotated[
    Path,
    typer.Option(help="Validation data: a manifest, a folder with captions.jsonl, or a data set's configuration."),
]
Split = Annotated[Literal["train", "val", "test"], typer.Option(help="Which split of a data set.")]
AllowMissing = Annotated[bool, typer.Option(help="Go on although videos are missing.")]
Seed = Annotated[int, typer.Option(help="Of folds and bootstrap; the same seed gives the same figures.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")]


@app.command()
def calibrate(
    data: Data,
    model: Model,
    pretrained: Pretrained = None,
    split: Split = "val",
    allow_missing: AllowMissing = False,
    output: Annotated[
        Path | None, typer.Option(help="Write a new checkpoint, NEW.safetensors, instead of changing --model.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and print, but write nothing.")] = False,
    only_if_significant: Annotated[
        bool, typer.Option("--only-if-significant", help="Choose beta 0 unless EMCL ranks better beyond chance.")
    ] = False,
    mode: Annotated[Literal["both", "channel", "reference"], typer.Option(help="Modes to try.")] = "both",
    beta: Annotated[str | None, typer.Option(help="Strengths to try, such as 0.05,0.1.")] = None,
    sigma: Annotated[str | None, typer.Option(help="Kernel widths to try.")] = None,
    bases: Annotated[str | None, typer.Option(help="Numbers of bases to try.")] = None,
    iterations: Annotated[str | None, typer.Option(help="Numbers of iterations to try.")] = None,
    candidates: Annotated[str, typer.Option(help="Numbers of candidates to try.")] = "50,100,200,500",
    temperatures: Annotated[str, typer.Option(help="Temperatures of dual softmax to try.")] = "0.003,0.01,0.03,0.1",
    folds: Annotated[int, typer.Option(min=2, help="Folds of the held-out comparison.")] = 5,
    seed: Seed = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
    device: Device = "auto",
) -> None:
    """Choose EMCL's settings on validation pairs, test them against ranking without EMCL, store the choice."""
    from pydantic import ValidationError

    from model.config import problems_of
    from model.data.validation import open_for_choosing
    from model.encoder import load_encoder
    from model.evaluate.run import encode_corpus
    from model.study.calibrate import Grid
    from model.study.calibrate import calibrate as run
    from model.study.calibrate_report import as_dict, record, table, verdict
    from model.study.calibrate_store import check_target, store_choice
    from model.study.per_video_ranks import describe

    check_target(model, output, dry_run=dry_run)
    try:
        grid = Grid(
            modes=("channel", "reference") if mode == "both" else (mode,),
            betas=_floats(beta, "--beta"),
            sigmas=_floats(sigma, "--sigma"),
            bases=_whole(bases, "--bases"),
            iterations=_whole(iterations, "--iterations"),
            candidates=_whole(candidates, "--candidates") or (),
            temperatures=_floats(temperatures, "--temperatures") or (),
        )
    except ValidationError as error:
        raise ValueError(f"the grid is not valid: {problems_of(error)}") from error
    chosen_data = open_for_choosing(data, split, allow_missing=allow_missing)
    encoder = load_encoder(model, pretrained=pretrained, device=device)
    corpus = encode_corpus(encoder, chosen_data.clips)
    found = run(encoder, corpus, grid, folds=folds, seed=seed)
    typer.echo(table(found) + "\n\n" + verdict(found))
    if split == "train":
        typer.echo("These are training pairs, which the model knows by heart: prefer a validation split.")
    choice = found.choice(only_if_better=only_if_significant)
    facts = {
        **_facts_of(chosen_data, split),
        "captions": len(corpus.text_TD),
        "seed": seed,
    }
    if json_file is not None:
        _write_json(json_file, {**facts, "model": encoder.fingerprint, **as_dict(found)})
    typer.echo(f"chosen: {describe(choice)}, {found.search.candidates} candidates")
    if dry_run:
        typer.echo("dry run: nothing was written")
        return
    stored = record(found, choice, facts)
    typer.echo(store_choice(encoder, model, output, emcl=choice, search=found.search, record=stored))


def _facts_of(data: VideoTextSet, split: str) -> dict[str, object]:
    """What a record says of the data that settings were chosen on."""
    from model.data.validation import data_digest

    return {
        "data": data.name,
        "data_digest": data_digest(data.clips),
        "split": split,
        "videos": len(data.clips),
        "videos_lost": data.videos_lost,
    }


def _floats(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}, expected numbers separated by commas, such as 0.1,0.3") from error


def _whole(text: str | None, option: str) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} is {text!r}, expected whole numbers separated by commas, such as 8,32") from error


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@app.command()
def sweep(
    data: Data,
    model: Model,
    pretrained: Pretrained = None,
    split: Split = "val",
    allow_missing: AllowMissing = False,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE,… of beta, sigma, bases, iterations, seed, mode or frames; may be repeated."),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Cross all that is varied, instead of one at a time.")] = False,
    preset: Annotated[
        Literal["supplementary-2"] | None,
        typer.Option(help="supplementary-2: the published beta sweep, beside ours."),
    ] = None,
    dual_softmax: Annotated[
        bool, typer.Option("--dual-softmax", help="Add dual softmax at the checkpoint's temperature (transductive).")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for sweep.md, sweep.json and the plots.")] = Path("runs/sweep"),
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Vary EMCL's settings one at a time or as a grid: a table, JSON and a plot, with bootstrap intervals."""
    from functools import partial

    from model.data.validation import open_for_choosing
    from model.encoder import load_encoder
    from model.evaluate.run import encode_corpus
    from model.study.figures import draw_sweep
    from model.study.sweep import PRESETS, Plan, as_dict, markdown, parse_vary
    from model.study.sweep import sweep as run

    if (vary is None) == (preset is None):
        raise ValueError("pass either --vary NAME=VALUE,… or --preset supplementary-2")
    if preset is not None and (grid or dual_softmax):
        raise ValueError("--grid and --dual-softmax go with --vary; a preset has its own")
    varied = parse_vary(vary or [])
    chosen_data = open_for_choosing(data, split, allow_missing=allow_missing)
    encoder = load_encoder(model, pretrained=pretrained, device=device)
    temperature = encoder.config.search.dual_softmax_temperature if dual_softmax else None
    plan = PRESETS[preset] if preset is not None else Plan(vary=varied, grid=grid, dual_softmax=temperature)
    points = run(encoder, partial(encode_corpus, clips=chosen_data.clips), plan, seed=seed)
    facts = {
        "model": encoder.config.name,
        "fingerprint": encoder.fingerprint,
        **_facts_of(chosen_data, split),
        "training_seeds": 1,
        "seed": seed,
    }
    text = markdown(points, plan, facts)
    typer.echo(text)
    output.mkdir(parents=True, exist_ok=True)
    (output / "sweep.md").write_text(text + "\n", encoding="utf-8")
    _write_json(output / "sweep.json", as_dict(points, plan, facts))
    for suffix in ("svg", "png"):
        draw_sweep(points, plan, output / f"sweep.{suffix}")
    typer.echo(f"written: sweep.md, sweep.json, sweep.svg and sweep.png in {output}")


@app.command()
def report(
    data: Data,
    model: Model,
    output: Annotated[Path, typer.Option(help="The HTML file to write.")],
    pretrained: Pretrained = None,
    split: Split = "val",
    allow_missing: AllowMissing = False,
    run: Annotated[
        Path | None, typer.Option(help="Folder of the training, whose log tells how the bases fared.")
    ] = None,
    beta: Annotated[float | None, typer.Option(min=0, help="Show this strength instead of the checkpoint's.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Show what EMCL does: modality gap, subspaces, ranked results, bases; one HTML file that needs nothing else."""
    from model.config import EMCLConfig
    from model.data.sources import open_for_evaluation
    from model.encoder import load_encoder
    from model.evaluate.run import encode_corpus
    from model.study.page import ReportFacts, build_report
    from model.study.per_video_ranks import variant

    chosen = open_for_evaluation(data, split, allow_missing=allow_missing)
    encoder = load_encoder(model, pretrained=pretrained, device=device)
    if beta is not None:
        encoder = variant(encoder, EMCLConfig.model_validate({**encoder.config.emcl.model_dump(), "beta": beta}))
    corpus = encode_corpus(encoder, chosen.clips)
    facts = ReportFacts(data=chosen.name, split=split, videos_lost=chosen.videos_lost, seed=seed)
    page = build_report(encoder, chosen.clips, corpus, facts, run=run)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    typer.echo(f"written: {output} ({len(page.encode()) / 1e6:.1f} MB)")
