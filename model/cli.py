"""Commands of the model, mounted by ``service.cli``: train, evaluate, study, export and import models; data sets.

Heavy modules are imported inside the commands, so that ``--help`` answers at once. User errors are raised as
``ValueError`` or ``OSError``, which ``service.cli`` prints as one line.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model.cli_options import flag_of, from_models
from model.options import (
    OF_FORM,
    CalibrateOptions,
    EvaluateOptions,
    ExportOptions,
    ImportOptions,
    QaOptions,
    ReportOptions,
    SweepOptions,
    ZeroShotOptions,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.data.dataset import VideoTextSet
    from model.encoder import Encoder
    from model.export.guard import Samples

# Options that several commands share.
Model = Annotated[str, typer.Option(help="'demo', a checkpoint's path, or an open_clip name with --pretrained.")]
Pretrained = Annotated[str | None, typer.Option(help="Tag or weights file of an open_clip model.")]
Data = Annotated[
    Path,
    typer.Option(help="Validation data: a manifest, a folder with captions.jsonl, or a data set's configuration."),
]
Split = Annotated[Literal["train", "val", "test"], typer.Option(help="Split of a data set.")]
AllowMissing = Annotated[bool, typer.Option(help="Continue although videos are missing.")]
Seed = Annotated[int, typer.Option(help="Seed of folds and bootstrap; the same seed gives the same figures.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")]

data_app = typer.Typer(help="Check and compress data sets.", no_args_is_help=True)


@data_app.command()
def check(
    config: Annotated[
        Path | None, typer.Option(help="A training configuration (its `data` section), or such a section alone.")
    ] = None,
    kind: Annotated[
        Literal["msrvtt", "msvd", "lsmdc", "activitynet", "didemo", "vatex"] | None,
        typer.Option(help="Instead of --config: the kind of the set in --root and --annotations."),
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
    """Count a set's videos and captions, and list what is missing; exit code 1 if it is incomplete."""
    from model.data.check import check_splits, describe, overlaps
    from model.data.registry import load_stored_set, parse_stored_set, read_splits

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


@data_app.command()
def compress(
    source: Annotated[Path, typer.Argument(help="Folder of videos.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the copies, with the same names, ending in .mp4.")],
    fps: Annotated[float, typer.Option(min=0.1, max=60, help="Frames per second.")] = 3.0,
    short_side: Annotated[int, typer.Option(min=16, help="Pixels of the shorter side; smaller videos stay.")] = 224,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Make small copies that decode fast: 3 frames per second, short side 224, upright, no sound.

    Existing copies are kept, so an interrupted run can be repeated. Exit code 1 if a video failed.
    """
    from model.data.compress import CompressSettings, compress_folder

    settings = CompressSettings(fps=fps, short_side=short_side)
    report = compress_folder(source, destination, settings, workers=workers)
    for name, reason in report.failed:
        typer.echo(f"failed: {name}: {reason}", err=True)
    typer.echo(f"{report.written} written, {report.kept} there already, {len(report.failed)} failed")
    if report.failed:
        raise typer.Exit(1)


export_app = typer.Typer()


@export_app.command()
def export(
    model: Annotated[
        str | None,
        typer.Option(
            help="'demo', a checkpoint's path, or an open_clip name with --pretrained. Default: CLIP ViT-B-32 with "
            "OpenAI's weights.",
            show_default=False,
        ),
    ] = None,
    pretrained: Pretrained = None,
    runtime: Annotated[
        Literal["fastest", "onnx", "onnx-int8", "torch-bf16"],
        typer.Option(
            help="fastest: make and judge what this processor can run, and measure which is the fastest for texts and "
            "for frames. onnx: fp32 by onnxruntime. onnx-int8: bytes, the smallest. torch-bf16 writes no model: it "
            "only judges whether `auto` may use bf16."
        ),
    ] = "fastest",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the files; name it to the other commands with --exports. Default: NAME.exports beside the "
            "checkpoint, or var/exports for the demo model and open_clip names.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Judge by these videos: JSON lines of {video, captions}, or a folder with such a captions.jsonl. "
            "Default: generated scenes.",
            show_default=False,
        ),
    ] = None,
    sample_videos: Annotated[int, typer.Option(min=20, help="Most videos to judge by.")] = 96,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. Default: one per core.")] = None,
) -> None:
    """Export a model's towers for a faster runtime, compare it with fp32, and refuse it if it ranks otherwise.

    `emcl serve`, `search` and `index` then use it automatically (`--runtime auto`), or by name. Exit code 1 if a
    runtime that was named is refused; then it is not used.
    """
    import torch

    from model.export.export import export as export_towers
    from model.export.export import generated_samples, require_exporter, samples_of
    from model.export.fastest import NamedModel, find_fastest

    if runtime != "fastest":
        require_exporter(runtime)
    if threads is not None:
        torch.set_num_threads(threads)
    named = NamedModel(model=model, pretrained=pretrained, exports=output)

    def samples_for(encoder: Encoder) -> Samples:
        if samples is None:
            return generated_samples(sample_videos, preprocess=encoder.preprocess)
        sampling = encoder.config.sampling
        return samples_of(samples, sample_videos, preprocess=encoder.preprocess, sampling=sampling)

    if runtime == "fastest":
        for line in find_fastest(named, typer.echo, samples_for).lines():
            typer.echo(line)
        return
    encoder = named.load()
    store = named.store(encoder.fingerprint)
    report = export_towers(encoder, store, runtime, samples_for(encoder))
    for line in report.lines():
        typer.echo(line)
    if not report.passed:
        typer.echo(f"{runtime} is not used for this model; the measurement is in {store.path_of(runtime)}", err=True)
        raise typer.Exit(1)
    typer.echo(f"exported: {store.path_of(runtime)}")


study_app = typer.Typer()


@study_app.command()
@from_models
def calibrate(options: CalibrateOptions) -> None:
    """Choose EMCL's settings on validation pairs, test them against ranking without EMCL, store the choice.

    --mode, --beta, --sigma, --bases, --iterations, --candidates, --temperatures, --only-if-significant and --output go
    with --form published; --store, --pairs, --query-bank and --quick with --form bases, which is kept only if it gains
    beyond chance.
    """
    other = "published" if options.form == "bases" else "bases"
    if wrong := [flag_of(CalibrateOptions, name) for name in options.changed(OF_FORM[other])]:
        raise ValueError(
            f"{', '.join(wrong)} has no effect with --form {options.form}; leave it out or choose the other form"
        )
    if options.form == "bases":
        from model.study.bases import run_bases

        typer.echo(run_bases(options))
        return
    from pydantic import ValidationError

    from model.config import problems_of
    from model.data.validation import open_for_choosing
    from model.encoder import load_encoder
    from model.evaluate.run import encode_corpus
    from model.study.calibrate import Grid, as_dict, check_target, record, store_choice, table, verdict
    from model.study.calibrate import calibrate as run
    from model.study.per_video_ranks import describe

    check_target(options.model, options.output, dry_run=options.dry_run)
    try:
        grid = Grid(
            modes=("channel", "reference") if options.mode == "both" else (options.mode,),
            betas=_floats(options.beta, "--beta"),
            sigmas=_floats(options.sigma, "--sigma"),
            bases=_whole(options.bases, "--bases"),
            iterations=_whole(options.iterations, "--iterations"),
            candidates=_whole(options.candidates, "--candidates") or (),
            temperatures=_floats(options.temperatures, "--temperatures") or (),
        )
    except ValidationError as error:
        raise ValueError(f"the grid is not valid: {problems_of(error)}") from error
    chosen_data = open_for_choosing(options.data, options.split, allow_missing=options.allow_missing)
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device, emcl="configured")
    corpus = encode_corpus(encoder, chosen_data.clips)
    found = run(encoder, corpus, grid, folds=options.folds, seed=options.seed)
    typer.echo(table(found) + "\n\n" + verdict(found))
    if options.split == "train":
        typer.echo("These are training pairs, which the model has seen: prefer a validation split.")
    choice = found.choice(only_if_better=options.only_if_significant)
    facts = {
        **_facts_of(chosen_data, options.split),
        "captions": len(corpus.text_TD),
        "seed": options.seed,
    }
    if options.json_file is not None:
        _write_json(options.json_file, {**facts, "model": encoder.fingerprint, **as_dict(found)})
    typer.echo(f"chosen: {describe(choice)}, {found.search.candidates} candidates")
    if options.dry_run:
        typer.echo("dry run: nothing was written")
        return
    stored = record(found, choice, facts)
    typer.echo(store_choice(encoder, options.model, options.output, emcl=choice, search=found.search, record=stored))


def _facts_of(data: VideoTextSet, split: str) -> dict[str, object]:
    """Describe the data that settings were chosen on, for the record."""
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


@study_app.command("compare")
def compare_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Checkpoints, or folders of training runs; one a seed.")
    ],
    against: Annotated[list[Path], typer.Option(help="The other side: repeat for each seed, in the same order.")],
    data: Data,
    split: Split = "test",
    allow_missing: AllowMissing = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
    device: Device = "auto",
) -> None:
    """Compare several training seeds with several: t-test over seeds, sign test over videos; no claim below 3 seeds."""
    from model.study.compare import checkpoint_of, compare_runs, video_ranks_of_runs

    for run in (*runs, *against):
        checkpoint_of(run)  # reported before anything is encoded
    ours, theirs = (
        video_ranks_of_runs(side, data, split, allow_missing=allow_missing, device=device) for side in (runs, against)
    )
    found = compare_runs(ours, theirs)
    typer.echo(found.text())
    if json_file is not None:
        _write_json(json_file, {"runs": [*map(str, runs)], "against": [*map(str, against)], **found.as_dict()})


@study_app.command()
@from_models
def sweep(
    options: SweepOptions,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE,… of beta, sigma, bases, iterations, seed, mode or frames; repeatable."),
    ] = None,
) -> None:
    """Vary EMCL's settings one at a time or as a grid: a table, JSON and a plot, with bootstrap intervals."""
    from functools import partial

    from model.data.validation import open_for_choosing
    from model.encoder import load_encoder
    from model.evaluate.run import encode_corpus
    from model.study.figures import draw_sweep
    from model.study.sweep import PRESETS, Plan, as_dict, markdown, parse_vary
    from model.study.sweep import sweep as run

    if (vary is None) == (options.preset is None):
        raise ValueError("pass either --vary NAME=VALUE,… or --preset supplementary-2")
    if options.preset is not None and (options.grid or options.dual_softmax):
        raise ValueError("--grid and --dual-softmax go with --vary; a preset has its own")
    varied = parse_vary(vary or [])
    chosen_data = open_for_choosing(options.data, options.split, allow_missing=options.allow_missing)
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device, emcl="configured")
    temperature = encoder.config.search.dual_softmax_temperature if options.dual_softmax else None
    if options.preset is not None:
        plan = PRESETS[options.preset]
    else:
        plan = Plan(vary=varied, grid=options.grid, dual_softmax=temperature)
    points = run(encoder, partial(encode_corpus, clips=chosen_data.clips), plan, seed=options.seed)
    facts = {
        "model": encoder.config.name,
        "fingerprint": encoder.fingerprint,
        **_facts_of(chosen_data, options.split),
        "training_seeds": 1,
        "seed": options.seed,
    }
    text = markdown(points, plan, facts)
    typer.echo(text)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "sweep.md").write_text(text + "\n", encoding="utf-8")
    _write_json(options.output / "sweep.json", as_dict(points, plan, facts))
    for suffix in ("svg", "png"):
        draw_sweep(points, plan, options.output / f"sweep.{suffix}")
    typer.echo(f"written: sweep.md, sweep.json, sweep.svg and sweep.png in {options.output}")


@study_app.command()
@from_models
def report(options: ReportOptions) -> None:
    """Show what EMCL does: modality gap, subspaces, ranked results, bases; one HTML file that needs nothing else."""
    from model.config import EMCLConfig
    from model.data.registry import open_for_evaluation
    from model.encoder import load_encoder
    from model.evaluate.run import encode_corpus
    from model.study.page import ReportFacts, build_report
    from model.study.per_video_ranks import variant

    chosen = open_for_evaluation(options.data, options.split, allow_missing=options.allow_missing)
    encoder = load_encoder(options.model, pretrained=options.pretrained, device=options.device, emcl="configured")
    if options.beta is not None:
        own = encoder.config.emcl.model_dump()
        encoder = variant(encoder, EMCLConfig.model_validate({**own, "beta": options.beta}))
    corpus = encode_corpus(encoder, chosen.clips)
    facts = ReportFacts(data=chosen.name, split=options.split, videos_lost=chosen.videos_lost, seed=options.seed)
    page = build_report(encoder, chosen.clips, corpus, facts, run=options.run)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page, encoding="utf-8")
    typer.echo(f"written: {options.output} ({len(page.encode()) / 1e6:.1f} MB)")


app = typer.Typer(help="Train and evaluate models.", no_args_is_help=True)

app.add_typer(data_app, name="data")

app.add_typer(study_app)

app.add_typer(export_app)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="Settings of the run, YAML or JSON (see configs/demo.yaml).")],
    output: Annotated[Path, typer.Option(help="Folder of the run: model, log, checkpoint to resume from.")] = Path(
        "runs/train"
    ),
    resume: Annotated[bool, typer.Option(help="Continue the run in --output from its last checkpoint.")] = False,
    device: Device = "auto",
) -> None:
    """Train a model from a configuration; --resume continues an interrupted run.

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
@from_models
def evaluate(options: EvaluateOptions) -> None:
    """Measure retrieval in both directions under a protocol, with and without EMCL; --task qa: answers to questions."""
    if options.task == "qa":
        from model.evaluate.answering import run as run_answers

        typer.echo(run_answers(options))
        return
    if options.questions is not None:
        raise ValueError("--questions goes with --task qa")
    if options.video_bank is not None and (options.query_bank is None or options.data is None):
        raise ValueError("--video-bank goes with --data and --query-bank; a bank of features has videos of its own")
    if (options.data is None) == (options.features is None):
        raise typer.BadParameter("give either --data or --features")
    if options.features is not None:
        from model.evaluate.features import run as run_features

        typer.echo(run_features(options))
        return
    if options.changed(("head", "aligned", "block_size")) or options.protocol in ("blocks", "whole"):
        raise ValueError("--protocol blocks or whole, --head, --block-size and --aligned need --features")
    from model.evaluate.run import run

    typer.echo(run(options))


@app.command("classify")
def classify_video(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    labels: Annotated[Path, typer.Option(help="A text file, one label a line: 1 to 1,000, of 200 characters at most.")],
    prompt: Annotated[
        str, typer.Option(help="The text that a label is put into; the paper's for actions: 'human action of {}'.")
    ] = "a video of {}",
    top: Annotated[int, typer.Option(min=1, help="Most labels to print.")] = 10,
    model: Annotated[str, typer.Option(help="'demo', a checkpoint's path, or an open_clip name.")] = "demo",
    pretrained: Annotated[str | None, typer.Option(help="Tag or weights file of an open_clip model.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
) -> None:
    """Say which of your labels describes a video: probability among the labels, cosine, label; best first."""
    from model.encoder import load_encoder
    from model.evaluate.labels import prompts_of, read_labels
    from model.evaluate.zero_shot import classify

    names = read_labels(labels)
    texts = prompts_of(names, prompt)
    encoder = load_encoder(model, pretrained=pretrained, device=device)
    features, mask = _frames_of(video, encoder)
    for found in classify(encoder, features, mask, names, encoder.encode_texts(texts))[:top]:
        typer.echo(f"{found.probability * 100:5.1f}%  {found.score:+.3f}  {found.label}")


@app.command("caption")
def caption_video(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    model: Annotated[str, typer.Option(help="A checkpoint with a caption head (configs/demo-captions.yaml).")] = "demo",
    beams: Annotated[int, typer.Option(min=1, max=20, help="Captions that the search keeps at a time.")] = 5,
    device: Device = "auto",
) -> None:
    """Write a caption for a video; prints it after its score, the mean log-probability of its words."""
    from model.encoder import load_encoder
    from model.evaluate.captioning import write_caption

    encoder = load_encoder(model, device=device)
    features, mask = _frames_of(video, encoder)
    found = write_caption(encoder, features, mask, beams=beams)
    typer.echo(f"{found.score:+.3f}  {found.text}")


@app.command("answer")
def answer_question(
    video: Annotated[Path, typer.Argument(help="A video file.")],
    question: Annotated[str, typer.Argument(help="A question about it, of at most 500 characters.")],
    model: Annotated[str, typer.Option(help="A checkpoint with an answer head (configs/demo-qa.yaml).")] = "demo",
    top: Annotated[int, typer.Option(min=1, max=100, help="Answers to print.")] = 5,
    device: Device = "auto",
) -> None:
    """Answer a question about a video: probability among the model's answers, answer; best first."""
    from model.encoder import load_encoder
    from model.evaluate.answering import answer_head
    from model.evaluate.answering import answer_question as find
    from model.evaluate.labels import check_question

    check_question(question)
    encoder = load_encoder(model, device=device)
    answer_head(encoder)
    features, mask = _frames_of(video, encoder)
    if encoder.truncates(question):
        typer.echo("the question is longer than the model reads; its end was ignored", err=True)
    for found in find(encoder, features, mask, question, top=top):
        typer.echo(f"{found.probability * 100:5.1f}%  {found.text}")


def _frames_of(video: Path, encoder: Encoder) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Decode and encode a file: frame features (F, D) and a mask of all of them."""
    import numpy as np

    from model.data.clips import Clip, load_frames

    if not video.is_file():
        raise FileNotFoundError(f"no video {video}")
    clip = Clip(path=video, captions=())
    frames = load_frames(clip, preprocess=encoder.preprocess, sampling=encoder.config.sampling)
    mask = np.ones((1, len(frames)), bool)
    return encoder.encode_videos(frames[None], mask)[0], mask[0]


tables_app = typer.Typer(help="The paper's other tables, on your own data.", no_args_is_help=True)
app.add_typer(tables_app, name="study")


@tables_app.command()
def comparators(
    train: Annotated[Path, typer.Option(help="Features to train the corrections on (`emcl features export`).")],
    test: Annotated[Path, typer.Option(help="Features of other videos, by the same model.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    steps: Annotated[int, typer.Option(min=0, help="Training steps of each correction.")] = 300,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """EMCL beside PCA, a transformer, fully connected layers and a sparse autoencoder, on exported features."""
    from model.study.comparators import Settings, run

    numbers = _whole(seeds, "--seeds") or ()
    typer.echo(run(train, test, Settings(seeds=numbers, steps=steps), json_file))


@tables_app.command("zero-shot")
@from_models
def zero_shot(options: ZeroShotOptions) -> None:
    """Zero-shot classification of videos by prompts, without and with EMCL, beside the published pair."""
    from model.study.zero_shot import run

    typer.echo(run(options))


@tables_app.command("sweep")
def sweep_of_trainings(
    config: Annotated[Path, typer.Option(help="Configuration of the trainings (see configs/demo.yaml).")],
    vary: Annotated[list[str], typer.Option(help="NAME=VALUE,… of beta, sigma, bases, iterations, mode; repeatable.")],
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings, separated by commas.")] = "0,1,2",
    output: Annotated[Path, typer.Option(help="Folder of the runs and of sweep.md.")] = Path("runs/training-sweep"),
    device: Device = "auto",
) -> None:
    """Train once for each value and seed, and without EMCL; the same command continues a sweep that was stopped."""
    from model.study.question_answering import parse_seeds
    from model.study.sweep import parse_vary
    from model.study.training_sweep import sweep_trainings, table
    from model.train.config import load_train_config

    numbers = parse_seeds(seeds)
    points = sweep_trainings(load_train_config(config), parse_vary(vary), numbers, output, device=device)
    text = table(points, numbers)
    (output / "sweep.md").write_text(text + "\n", encoding="utf-8")
    typer.echo(text)


@tables_app.command("qa")
@from_models
def question_answering(options: QaOptions) -> None:
    """Train EMCL-QA on exported features: without a contrast, with it, and with EMCL in it."""
    from model.study.question_answering import run

    typer.echo(run(options))


features_app = typer.Typer(help="Features as files: of this program's models, for others' tools.", no_args_is_help=True)
app.add_typer(features_app, name="features")


@features_app.command("export")
@from_models
def export_features(options: ExportOptions) -> None:
    """Encode a data set and write its features, which `emcl evaluate --features` measures without the videos."""
    from model.evaluate.features import export

    typer.echo(export(options))


@app.command()
def synthesize(
    output: Annotated[Path, typer.Option(help="Folder for the clips and captions.jsonl.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="No two splits share a combination.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    captions: Annotated[int, typer.Option(min=1, max=2, help="Captions per clip.")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Write the demo corpus: H.264 clips of moving shapes with captions, tags and questions (questions.jsonl)."""
    from model.demo.corpus import write_corpus

    written = write_corpus(output, split=split, count=count, seed=seed, captions=captions, workers=workers)
    typer.echo(f"{count} clips, captions in {written}")


@app.command("import-checkpoint")
@from_models
def import_others(
    source: Annotated[Path, typer.Argument(help="File of EMCL-Net, CLIP4Clip or CLIP (see docs/importing.md).")],
    output: Annotated[Path, typer.Option(help="Checkpoint to write: NAME.safetensors, with NAME.json beside it.")],
    options: ImportOptions,
) -> None:
    """Convert a checkpoint of EMCL-Net, CLIP4Clip or CLIP. The file's code is not run; nothing is dropped silently."""
    from model.importing.convert import import_checkpoint

    typer.echo(import_checkpoint(source, output, options).text())


models_app = typer.Typer(help="List CLIP models, and fetch one for a machine without network.")
app.add_typer(models_app, name="models")


@models_app.callback(invoke_without_command=True)
def list_models(
    context: typer.Context,
    json_output: Annotated[bool, typer.Option("--json", help="Print all facts as JSON.")] = False,
) -> None:
    """List presets and open_clip's models: input size, preparation of frames, tokens, licence, R@1.

    R@1 is zero-shot text to video on MSR-VTT as published, in percent. A star marks what is in the local cache.
    """
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from model.clip import presets

    facts = presets.list_models()
    if json_output:
        typer.echo(json.dumps([asdict(fact) for fact in facts], indent=2))
        return
    for fact in facts:
        name = f"{fact.preset}: {fact.architecture}" if fact.preset else fact.architecture
        size = "x".join(map(str, fact.image_size))
        line = f"{'*' if fact.cached else ' '} {name} --pretrained {fact.tag}"
        line += f"  {size} {fact.resize_mode} {fact.interpolation}, {fact.context_length} tokens"
        if fact.preset:
            megabytes = presets.PRESETS[fact.preset].megabytes
            line += f", about {megabytes:,} MB, {fact.licence}, R@1 {fact.recall_at_1} ({fact.source})"
        typer.echo(line)


@models_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A preset, or an open_clip name with --pretrained.")],
    to: Annotated[Path, typer.Option(help="Folder to write; --model FOLDER loads it without network.")],
    pretrained: Annotated[str | None, typer.Option(help="Tag of an open_clip model.")] = None,
) -> None:
    """Copy a model into a folder, for machines without network."""
    from model.clip.presets import fetch_model

    facts = fetch_model(name, pretrained, to)
    typer.echo(f"{facts.architecture} ({facts.tag}) is in {to}; use it with --model {to}")
