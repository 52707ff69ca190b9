"""``emcl sweep``: the effect of EMCL's settings. Points along one or several settings, each with intervals.

In: an encoder, clips, and what to vary. Out: one ``Point`` for each combination, all against the ranking without EMCL
of the same frames. Settings that are not varied are the checkpoint's own, or a preset's.

    beta sigma bases iterations seed mode frames

``seed`` is the initialisation: any but the checkpoint's own draws a new state. ``frames`` decodes and encodes the
videos again with at most so many frames, because the temporal layers have seen all frames of a stored feature.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from model.config import EMCLConfig, ModelConfig, problems_of
from model.encoder import Encoder
from model.evaluate.metrics import RetrievalMetrics, retrieval_metrics
from model.evaluate.paper_results import BETA_SWEEP, PaperResult
from model.evaluate.run import Corpus
from model.study.calibrate import Comparison, compare_video_ranks
from model.study.per_video_ranks import Ranks, VideoRanks, correction_size, ranks_under
from model.study.significance import Interval, bootstrap

Value = float | int | str
Frames = int | None

_METRICS = ("R@1", "R@5", "R@10", "MdR", "MnR")

_FIELDS = {
    "beta": ("beta", float),
    "sigma": ("sigma", float),
    "bases": ("num_bases", int),
    "iterations": ("iterations", int),
    "seed": ("seed", int),
    "mode": ("mode", str),
    "frames": (None, int),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to vary, from which settings, and how to rank.

    ``grid`` crosses all that is varied; without it one setting varies at a time. ``dual_softmax`` adds it to every
    ranking (transductive). ``published`` is a figure to print beside a point, by its value of the first setting, and
    ``published_rows`` are all that was published of it.
    """

    vary: dict[str, tuple[Value, ...]]
    grid: bool = False
    dual_softmax: float | None = None
    base: EMCLConfig | None = None
    published: dict[Value, float] = field(default_factory=dict)
    published_rows: dict[Value, PaperResult] = field(default_factory=dict)
    remark: str = ""

    def combinations(self) -> list[dict[str, Value]]:
        """The points, each as what it changes."""
        if self.grid:
            return [dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())]
        return [{name: value} for name, values in self.vary.items() for value in values]


SUPPLEMENTARY_2 = Plan(
    vary={"beta": (0.0, 1.0, 2.0, 3.0, 4.0)},
    dual_softmax=0.01,
    base=EMCLConfig.reference(),
    published={beta: row.text_to_video["R@1"] for beta, row in BETA_SWEEP.items()},
    published_rows=dict(BETA_SWEEP.items()),
    remark=(
        "Published: supplementary, table 2: R@1 text → video on MSR-VTT with dual softmax, models trained with EMCL at "
        "each β. Ours: one checkpoint, on the data of this sweep, with EMCL in the released arithmetic at inference "
        "only, one pass per query and not over blocks of 32. The two columns are not the same experiment. Nor is the "
        "published swing a target: it is out of proportion with the correction, which in the released code is 1.3 % of "
        "a feature at β 3 in an evaluation block (reference §6)."
    ),
)
PRESETS = {"supplementary-2": SUPPLEMENTARY_2}


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """One combination. ``first`` is R@1 in percent, text to video and video to text, ``reciprocal`` MRR in percent.

    ``metrics`` are those of both directions; ``correction`` is how large what EMCL adds is, as a share of a feature.
    ``against_none`` compares it with the ranking without EMCL of the same frames.
    """

    changes: dict[str, Value]
    first: tuple[Interval, Interval]
    reciprocal: Interval
    metrics: tuple[RetrievalMetrics, RetrievalMetrics]
    correction: float
    against_none: Comparison

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "changes": self.changes,
            "text_to_video_r1": vars(self.first[0]),
            "video_to_text_r1": vars(self.first[1]),
            "mrr": vars(self.reciprocal),
            "text_to_video": self.metrics[0].as_dict(),
            "video_to_text": self.metrics[1].as_dict(),
            "correction_of_a_feature": self.correction,
            "against_no_emcl": self.against_none.as_dict(),
        }


def parse_vary(wishes: Iterable[str]) -> dict[str, tuple[Value, ...]]:
    """Read ``NAME=VALUE,VALUE,…``. Raises ``ValueError`` for an unknown or repeated name and for a non-number."""
    vary: dict[str, tuple[Value, ...]] = {}
    for wish in wishes:
        name, _, text = wish.partition("=")
        if name not in _FIELDS or not text:
            raise ValueError(f"--vary {wish!r}: expected NAME=VALUE,… with a NAME of {', '.join(_FIELDS)}")
        if name in vary:
            raise ValueError(f"--vary names {name} twice; list all its values in one")
        try:
            values: list[Value] = [_FIELDS[name][1](part) for part in text.split(",")]
        except ValueError as error:
            raise ValueError(f"--vary {wish!r}: {error}; expected values separated by commas") from error
        vary[name] = tuple(dict.fromkeys(values))
    return vary


def sweep(encoder: Encoder, encode: Callable[[Encoder], Corpus], plan: Plan, *, seed: int = 0) -> list[Point]:
    """Measure every point of a plan. ``encode`` is called once for each number of frames.

    Raises ``ValueError`` for values that the model cannot have, before anything is encoded.
    """
    combinations = plan.combinations()
    settings = [_setting(encoder.config, plan, changes) for changes in combinations]
    encoders = {frames: with_frames(encoder, frames) for _, frames in settings}
    corpora: dict[Frames, Corpus] = {}
    without: dict[Frames, VideoRanks] = {}
    points = []
    for changes, (config, frames) in zip(tqdm(combinations, desc="sweep", unit="point"), settings, strict=True):
        if frames not in corpora:
            corpora[frames] = encode(encoders[frames])
            without[frames] = _ranks(encoders[frames], corpora[frames], None, plan).per_video()
        ranks = _ranks(encoders[frames], corpora[frames], config, plan)
        size = correction_size(encoders[frames], corpora[frames], config, candidates=encoder.config.search.candidates)
        points.append(_point(changes, ranks, size, without[frames], seed))
    return points


def with_frames(encoder: Encoder, frames: Frames) -> Encoder:
    """Return the same model that takes at most so many frames of a video; ``None`` leaves it as it is.

    Raises ``ValueError`` for more frames than the temporal layers have positions.
    """
    if frames is None:
        return encoder
    sampling = {**encoder.config.sampling.model_dump(), "max_frames": frames}
    try:
        config = ModelConfig.model_validate({**encoder.config.model_dump(), "sampling": sampling})
    except ValidationError as error:
        raise ValueError(f"--vary frames={frames}: {problems_of(error)}") from error
    net = copy(encoder.net)  # its parts are shared, its configuration is not
    net.config = config
    return Encoder(
        net, encoder.tokenizer, fingerprint=encoder.fingerprint, device=encoder.device, runtime=encoder.runtime
    )


def _setting(own: ModelConfig, plan: Plan, changes: dict[str, Value]) -> tuple[EMCLConfig, Frames]:
    base = plan.base or own.emcl
    fields = {_FIELDS[name][0]: value for name, value in changes.items() if name != "frames"}
    try:
        config = EMCLConfig.model_validate({**base.model_dump(), **fields})
    except ValidationError as error:
        raise ValueError(f"--vary: {problems_of(error)}") from error
    frames = changes.get("frames")
    return config, None if frames is None else int(frames)


def _ranks(encoder: Encoder, corpus: Corpus, config: EMCLConfig | None, plan: Plan) -> Ranks:
    candidates = encoder.config.search.candidates
    return ranks_under(encoder, corpus, config, candidates=candidates, dual_softmax_temperature=plan.dual_softmax)


def _point(changes: dict[str, Value], ranks: Ranks, correction: float, without: VideoRanks, seed: int) -> Point:
    video_ranks = ranks.per_video()
    first = [bootstrap(video_ranks.first_VW[:, way], seed=seed).scaled(100) for way in (0, 1)]
    return Point(
        changes=changes,
        first=(first[0], first[1]),
        reciprocal=bootstrap(video_ranks.reciprocal_ranks, seed=seed).scaled(100),
        metrics=(retrieval_metrics(ranks.text_to_video_T), retrieval_metrics(ranks.video_to_text_V)),
        correction=correction,
        against_none=compare_video_ranks(without, video_ranks, seed=seed),
    )


def table(points: Sequence[Point], plan: Plan) -> str:
    """The points as a Markdown table, intervals in brackets."""
    names = list(dict.fromkeys(name for point in points for name in point.changes))
    head = [*names, "of a feature", "R@1 t→v", "R@1 v→t", "MRR", "MRR against no EMCL", "wins", "losses", "p"]
    head += ["published R@1 t→v"] if plan.published else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for point in points:
        test = point.against_none.ranks
        cells = [_text(point.changes.get(name, "")) for name in names]
        cells += [f"{100 * point.correction:.2g} %", *(one.text() for one in (*point.first, point.reciprocal))]
        cells += [point.against_none.reciprocal_difference.text(2, sign=True)]
        cells += [str(test.wins), str(test.losses), f"{test.p:.2g}"]
        if plan.published:
            cells.append(_text(plan.published.get(next(iter(point.changes.values())), "")))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def metrics_table(points: Sequence[Point], plan: Plan) -> str:
    """All five metrics of both directions, with what was published of the same value."""
    names = list(dict.fromkeys(name for point in points for name in point.changes))
    head = [*names, "of"] + [f"{way} {metric}" for way in ("t→v", "v→t") for metric in _METRICS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for point in points:
        changed = [_text(point.changes.get(name, "")) for name in names]
        own = [{name: f"{figure:.1f}" for name, figure in way.as_dict().items()} for way in point.metrics]
        lines.append("| " + " | ".join([*changed, "ours", *(way[metric] for way in own for metric in _METRICS)]) + " |")
        row = plan.published_rows.get(next(iter(point.changes.values())))
        if row is not None:
            theirs = [row.text_to_video, row.video_to_text or {}]
            figures = [f"{way[metric]:.1f}" if metric in way else "" for way in theirs for metric in _METRICS]
            lines.append("| " + " | ".join([*changed, "published", *figures]) + " |")
    return "\n".join(lines)


def _text(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def markdown(points: Sequence[Point], plan: Plan, facts: dict[str, Any]) -> str:
    """The table with all that is needed to read it."""
    rest = "the checkpoint's own" if plan.base is None else "the released EMCL-Net values"
    lines = [
        f"# EMCL sweep: {facts['model']}",
        "",
        f"{facts['videos']} videos of {facts['data']} ({facts['split']}), one training seed. What is not varied: "
        f"{rest}. Recall in percent with 95 % bootstrap intervals over videos; wins, losses and p (sign test, not "
        "corrected for the number of points) against ranking without EMCL.",
    ]
    if facts["videos_lost"]:
        lines[-1] += f" {facts['videos_lost']} videos of the split are missing: not comparable with the whole set."
    if plan.dual_softmax is not None:
        lines[-1] += f" With dual softmax at temperature {plan.dual_softmax:g} everywhere (transductive)."
    lines[-1] += (
        ' "Of a feature" is how large what EMCL adds is in the pass of a query, relative to the rows: where it is '
        "small, so must its effect be."
    )
    lines += ["", table(points, plan), "", "All metrics:", "", metrics_table(points, plan)]
    return "\n".join([*lines, "", plan.remark] if plan.remark else lines)


def as_dict(points: Sequence[Point], plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        **facts,
        "vary": {name: list(values) for name, values in plan.vary.items()},
        "grid": plan.grid,
        "dual_softmax_temperature": plan.dual_softmax,
        "base": None if plan.base is None else plan.base.model_dump(mode="json"),
        "published_text_to_video_r1": {_text(value): figure for value, figure in plan.published.items()},
        "remark": plan.remark,
        "points": [point.as_dict() for point in points],
    }
