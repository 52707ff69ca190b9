"""Options of the commands that choose and vary EMCL's settings. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from model.cli_options import Shown
from model.config import Config


class StudyOptions(Config):
    """What is measured, and on what data."""

    data: Path = Field(
        description="Validation data: a manifest, a folder with captions.jsonl, or a data set's configuration."
    )
    model: str = Field(description="'demo', a checkpoint's path, or an open_clip name with --pretrained.")
    pretrained: str | None = Field(None, description="Tag or weights file of an open_clip model.")
    split: Literal["train", "val", "test"] = Field("val", description="Split of a data set.")
    allow_missing: bool = Field(False, description="Continue although videos are missing.")
    seed: int = Field(0, description="Seed of folds and bootstrap; the same seed gives the same figures.")
    device: str = Field("auto", description="auto, cpu or cuda[:N].")


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

    def changed(self, names: tuple[str, ...]) -> list[str]:
        """Those of ``names`` whose values are not the defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


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
