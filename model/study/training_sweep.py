"""``emcl study sweep``: one training for each value of EMCL's settings and each seed, as the paper's ablations have it.

In: a training configuration of the task ``retrieval`` with validation clips, and what to vary, one setting at a time.
Out: a folder of runs, which can be continued, and a table: R@1 of the last validation, mean and standard deviation over
the seeds, and the difference to training without EMCL with the same seed. Validation ranks without a pass, so the table
says what EMCL in the loss does to the features. ``emcl sweep`` varies the pass of one finished model instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from model.config import EMCLConfig
from model.study.sweep import Value
from model.train.config import TrainConfig, selection_split
from model.train.run import train

_FIELDS = {"beta": "beta", "sigma": "sigma", "bases": "num_bases", "iterations": "iterations", "mode": "mode"}
WITHOUT = "without EMCL"


@dataclass(frozen=True, kw_only=True)
class TrainedPoint:
    """One setting: R@1 in percent of each seed, text to video and video to text."""

    name: str
    scores: Sequence[tuple[float, float]]


def plan(config: TrainConfig, vary: Mapping[str, Sequence[Value]]) -> dict[str, TrainConfig]:
    """Return the configuration of each point by its name, training without EMCL first. Raises ``ValueError``."""
    if config.task != "retrieval":
        raise ValueError(f"the configuration trains {config.task}; a sweep of trainings compares rankings")
    if selection_split(config.data) is None:
        raise ValueError("the configuration has no validation clips to compare by; name some in its data section")
    foreign = [name for name in vary if name not in _FIELDS]
    if foreign or not vary:
        what = f"{', '.join(foreign)} cannot be varied" if foreign else "nothing is varied"
        raise ValueError(f"{what}; a sweep of trainings takes --vary NAME=VALUE,… of {', '.join(_FIELDS)}")
    points = {WITHOUT: config.model_copy(update={"joint_emcl": False, "emcl_ramp_steps": 0})}
    for name, values in vary.items():
        for value in values:
            settings = config.model.emcl.model_dump() | {_FIELDS[name]: value}
            points[f"{name} {value}"] = _with(config.model_copy(update={"joint_emcl": True}), settings)
    return points


def _with(config: TrainConfig, settings: Mapping[str, object]) -> TrainConfig:
    emcl = EMCLConfig.model_validate(settings)
    return config.model_copy(update={"model": config.model.model_copy(update={"emcl": emcl})})


def sweep_trainings(
    config: TrainConfig,
    vary: Mapping[str, Sequence[Value]],
    seeds: Sequence[int],
    output: Path,
    *,
    device: str = "auto",
) -> list[TrainedPoint]:
    """Train every point with every seed below ``output``; runs that are there already are continued or read.

    A seed decides weights, dropout and EMCL's start; batches are those of the data's own seed.
    """
    found = []
    for name, point in plan(config, vary).items():
        scores = []
        for seed in seeds:
            seeded = _with(point, point.model.emcl.model_dump() | {"seed": seed}).model_copy(update={"seed": seed})
            folder = output / name.replace(" ", "-") / f"seed-{seed}"
            train(seeded, folder, resume=folder.exists(), device=device)
            scores.append(_last_validation(folder / "log.jsonl"))
        found.append(TrainedPoint(name=name, scores=scores))
    return found


def _last_validation(log: Path) -> tuple[float, float]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figures = [line["validation"] for line in lines if "validation" in line][-1]
    return figures["text_to_video"]["R@1"], figures["video_to_text"]["R@1"]


def table(points: Sequence[TrainedPoint], seeds: Sequence[int]) -> str:
    """Return the results as a Markdown table; the first point is training without EMCL."""
    head = ["training", "R@1 text → video", "difference", "R@1 video → text", "difference"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for point in points:
        cells = [point.name]
        for way in (0, 1):
            ours = [score[way] for score in point.scores]
            theirs = [score[way] for score in points[0].scores]
            differences = [a - b for a, b in zip(ours, theirs, strict=True)]
            cells += [_over_seeds(ours), "–" if point is points[0] else _over_seeds(differences, sign="+")]
        rows.append("| " + " | ".join(cells) + " |")
    claim = "" if len(seeds) >= 3 else " Fewer than 3 seeds support no claim."
    rows += [
        "",
        f"Seeds {', '.join(map(str, seeds))}: mean ± standard deviation over them; differences are those of runs with "
        f"the same seed. Last validation, ranked without a pass.{claim}",
    ]
    return "\n".join(rows)


def _over_seeds(values: Sequence[float], sign: str = "") -> str:
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
