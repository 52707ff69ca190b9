"""Options of the model's commands; the functions behind them take the same objects. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from model.cli_options import Shown
from model.config import Config

Split = Literal["train", "val", "test"]


class Options(Config):
    """Options of a command."""

    def changed(self, names: tuple[str, ...]) -> list[str]:
        """Those of ``names`` whose values are not the defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


class ModelOptions(Options):
    """Which model, where."""

    model: str = Field("demo", description="'demo', a checkpoint's path, or an open_clip name with --pretrained.")
    pretrained: str | None = Field(None, description="Tag or weights file of an open_clip model.")
    device: str = Field("auto", description="auto, cpu or cuda[:N].")


class EvaluateOptions(Options):
    """Options of ``emcl evaluate``, with either ``data`` or ``features``; ``candidates`` None: the checkpoint's."""

    data: Path | None = Field(
        None,
        description="JSON lines of {video, captions}, a folder with such a captions.jsonl, or the configuration of a "
        "data set (YAML or JSON, see configs/msrvtt.yaml).",
    )
    features: Path | None = Field(
        None,
        description="Instead of --data: features that any baseline computed, .npz or .safetensors (see docs/heads.md).",
    )
    head: Literal["pooled", "frames", "tokens", "experts", "mixture"] | None = Field(
        None, description="With --features: the kind of a file that does not state it."
    )
    task: Literal["retrieval", "qa"] = Field(
        "retrieval", description="qa: answer --questions about the videos of --data, by a model with an answer head."
    )
    questions: Path | None = Field(
        None, description="With --task qa: MSRVTT-QA's test.jsonl, or the questions.jsonl of `emcl synthesize`."
    )
    split: Split = Field("test", description="Split of a data set.")
    allow_missing: bool = Field(False, description="Evaluate although videos are missing; the report counts them.")
    model: Annotated[str, Shown(flag="--model", also="--checkpoint")] = Field(
        "demo", description="'demo', a checkpoint's path, or an open_clip name with --pretrained."
    )
    pretrained: str | None = Field(None, description="Tag or weights file of an open_clip model.")
    protocol: Literal["per-query", "reference", "frozen", "blocks", "whole"] = Field(
        "per-query",
        description="per-query ranks as the service does; reference runs the EM pass over blocks of 32 texts and 32 "
        "videos, as the released code does; frozen is stage 1 alone. With --features also blocks of --block-size, and "
        "whole, one pass over everything.",
    )
    block_size: int = Field(32, ge=1, description="Texts and videos of a block (--protocol blocks).")
    aligned: Annotated[bool, Shown(flag="--aligned")] = Field(
        False,
        description="Blocks of matching pairs, as MMT's released evaluation; it leaks who belongs together.",
    )
    metric_rules: Literal["corrected", "reference"] = Field(
        "corrected",
        description="reference counts ties, medians and MSVD's cut points as the released code does, errors included; "
        "with --task qa, which prints both, it drops questions whose answer the model cannot give.",
    )
    candidates: Annotated[int | None, Shown(default="the checkpoint's, 100 unless calibrated")] = Field(
        None, ge=1, description="Candidates passed from stage 1 to reranking (protocol per-query)."
    )
    query_bank: str | None = Field(
        None,
        description="Also measure QB-Norm with a bank of the captions in this file (JSON lines, or .txt), or 'train' "
        "for its training captions. With --features: a features file, whose videos are the bank for texts.",
    )
    video_bank: Path | None = Field(
        None,
        description="With --data and --query-bank: features of training videos by the same model (`emcl features "
        "export`), the bank by which captions are ranked.",
    )
    query_bank_size: int = Field(5000, ge=1, description="Maximum number of captions in the bank, drawn at random.")
    query_bank_seed: int = Field(0, description="Seed of the draw.")
    query_bank_beta: float = Field(20.0, ge=0.01, description="QB-Norm's inverse temperature.")
    query_bank_top: int = Field(1, ge=1, description="Videos that each bank query marks as hubs.")
    json_file: Annotated[Path | None, Shown(flag="--json")] = Field(
        None, description="Also write the figures to this file."
    )
    markdown_file: Annotated[Path | None, Shown(flag="--markdown")] = Field(
        None, description="Also write a report with published figures next to ours."
    )
    device: str = Field("auto", description="auto, cpu or cuda[:N].")
    runtime: Literal["auto", "torch", "torch-compiled", "onnx", "onnx-int8"] = Field(
        "torch",
        description="Runtime of the encoder (see `emcl export`); use torch for figures to compare with others.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Precision of the encoder; auto is fp32 for torch."
    )
    exports: Path | None = Field(
        None, description="Folder of `emcl export`. Default: beside the checkpoint, or var/exports."
    )


class ExportOptions(ModelOptions):
    """Options of ``emcl features export``."""

    data: Path = Field(description="As for `emcl evaluate`.")
    output: Path = Field(description="The file to write: .npz or .safetensors.")
    split: Split = Field("test", description="Split of a data set.")
    head: Literal["frames", "pooled"] = Field(
        "frames", description="frames: what reranking sees, for the same figures; pooled: stage 1's vectors."
    )
    allow_missing: bool = Field(False, description="Export although videos are missing.")


class ZeroShotOptions(ModelOptions):
    """Options of ``emcl study zero-shot``."""

    features: Path = Field(description="Features of the videos (`emcl features export`).")
    classes: Path = Field(description="ActivityNet's annotation file, or a JSON mapping of video ids to labels.")
    model: str = Field("demo", description="The model that the features are of, for the prompts.")
    prompt: str = Field("human action of {}", description="The text that a class is put into.")


class QaOptions(ModelOptions):
    """Options of ``emcl study qa``."""

    train_features: Path = Field(description="Features of the training videos (`emcl features export`, head frames).")
    train: Path = Field(description="Training questions: MSRVTT-QA's train.jsonl or questions.jsonl of a demo corpus.")
    test_features: Path = Field(description="Features of other videos, by the same model.")
    test: Path = Field(description="Questions about those.")
    answers: Annotated[Path | None, Shown(default="the 1,500 most frequent of training")] = Field(
        None, description="The list of answers: MSRVTT-QA's train_ans2label.json."
    )
    model: str = Field("demo", description="The model that the features are of, for the questions.")
    seeds: str = Field("0,1,2", description="Seeds, separated by commas.")
    steps: int = Field(2000, ge=1, description="Training steps of each net.")
    batch: int = Field(32, ge=2, description="Questions of a step.")
    learning_rate: float = Field(1e-4, gt=0, description="The released one; a small model needs more.")
    projected: int = Field(2048, ge=1, description="Channels that the contrast sees.")
    hidden: int = Field(8192, ge=1, description="Hidden channels of the answer layers.")


class ImportOptions(Options):
    """Options of ``emcl import-checkpoint``: what a file does not say. Defaults are those of the papers."""

    kind: Literal["auto", "emcl-net", "clip4clip", "clip"] = Field(
        "auto", description="What wrote the file; auto fails if the names of its tensors leave it open."
    )
    max_words: int = Field(32, ge=3, le=1024, description="Tokens per text; the paper has 64 for ActivityNet.")
    max_frames: int = Field(12, ge=1, le=512, description="Frames per video; the paper has 64 for ActivityNet.")
    emcl: Literal["auto", "reference", "channel"] = Field(
        "auto",
        description="EMCL's mode and the rules that go with it; auto is reference for emcl-net, else channel.",
    )
    activation: Literal["quick-gelu", "gelu"] = Field(
        "quick-gelu", description="quick-gelu is OpenAI's; LAION's CLIPs need gelu."
    )
    vision_head_width: Annotated[int | None, Shown(default="CLIP's, mostly 64")] = Field(
        None, ge=1, description="Channels per head of the image tower."
    )
    text_head_width: Annotated[int | None, Shown(default="64")] = Field(
        None, ge=1, description="Channels per head of the text tower."
    )
    allow_unmatched: Annotated[bool, Shown(flag="--allow-unmatched")] = Field(
        False, description="List what does not fit instead of refusing the file."
    )


class StudyOptions(ModelOptions):
    """What is measured, and on what data."""

    data: Path = Field(
        description="Validation data: a manifest, a folder with captions.jsonl, or a data set's configuration."
    )
    model: str = Field(description="'demo', a checkpoint's path, or an open_clip name with --pretrained.")
    split: Split = Field("val", description="Split of a data set.")
    allow_missing: bool = Field(False, description="Continue although videos are missing.")
    seed: int = Field(0, description="Seed of folds and bootstrap; the same seed gives the same figures.")


class CalibrateOptions(StudyOptions):
    """Options of ``emcl calibrate``; ``OF_FORM`` says which go with one form alone."""

    output: Path | None = Field(
        None, description="Write a new checkpoint, NEW.safetensors, instead of changing --model."
    )
    dry_run: Annotated[bool, Shown(flag="--dry-run")] = Field(
        False, description="Measure and print, but write nothing."
    )
    only_if_significant: Annotated[bool, Shown(flag="--only-if-significant")] = Field(
        False, description="Choose beta 0 unless EMCL ranks better beyond chance."
    )
    form: Literal["bases", "published"] = Field(
        "bases",
        description="bases: hub and paired bases. published: EM over channels, with a grid of its settings.",
    )
    store: Path | None = Field(
        None, description="Write what was chosen for bases into this store instead of a checkpoint."
    )
    pairs: Path | None = Field(
        None, description="More labelled pairs to fit bases on, such as training data; as --data."
    )
    query_bank: Path | None = Field(
        None, description="More texts for the bank of hub bases: JSON lines with `captions`, or .txt."
    )
    quick: Annotated[bool, Shown(flag="--quick")] = Field(False, description="A coarse grid for bases.")
    mode: Literal["both", "channel", "reference"] = Field("both", description="Modes to try.")
    beta: str | None = Field(None, description="Strengths to try, such as 0.05,0.1.")
    sigma: str | None = Field(None, description="Kernel widths to try.")
    bases: str | None = Field(None, description="Numbers of bases to try.")
    iterations: str | None = Field(None, description="Numbers of iterations to try.")
    candidates: str = Field("50,100,200,500", description="Numbers of candidates to try.")
    temperatures: str = Field("0.003,0.01,0.03,0.1", description="Temperatures of dual softmax to try.")
    folds: int = Field(5, ge=2, description="Folds of the held-out comparison.")
    json_file: Annotated[Path | None, Shown(flag="--json")] = Field(
        None, description="Also write all figures to this file."
    )


OF_FORM: dict[str, tuple[str, ...]] = {
    "bases": ("store", "pairs", "query_bank", "quick"),
    "published": (
        *("mode", "beta", "sigma", "bases", "iterations", "only_if_significant"),
        *("output", "candidates", "temperatures"),
    ),
}


class SweepOptions(StudyOptions):
    """Options of ``emcl sweep`` beside ``--vary``."""

    grid: Annotated[bool, Shown(flag="--grid")] = Field(
        False, description="Combine all varied settings, instead of one at a time."
    )
    preset: Literal["supplementary-2"] | None = Field(
        None, description="supplementary-2: the beta sweep of the paper's supplementary, next to ours."
    )
    dual_softmax: Annotated[bool, Shown(flag="--dual-softmax")] = Field(
        False, description="Add dual softmax at the checkpoint's temperature (transductive)."
    )
    output: Path = Field(Path("runs/sweep"), description="Folder for sweep.md, sweep.json and the plots.")


class ReportOptions(StudyOptions):
    """Options of ``emcl report``."""

    output: Path = Field(description="The HTML file to write.")
    run: Path | None = Field(None, description="Folder of the training, whose log shows the bases over the steps.")
    beta: float | None = Field(None, ge=0, description="Show this strength instead of the checkpoint's.")
