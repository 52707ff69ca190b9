"""``emcl calibrate``: find the settings of EMCL and of the search that rank best on labelled validation pairs.

In: an encoded validation corpus and a grid. Out: the best setting by mean reciprocal rank over both directions, and how
it compares with the ranking without EMCL (``beta`` 0), video by video; as a table with a verdict, a mapping for JSON,
and a record that ``store_choice`` writes into a checkpoint.

The best of eighty settings is lucky by construction, so the comparison that counts is held out: videos are cut into
folds, each fold is ranked by the setting that is best on the *others*, and the sign test and the bootstrap intervals
are over these rankings. The report also has the uncorrected sign test of every setting and Holm's correction of it.

The number of candidates is chosen first, without EMCL, so that it favours no setting; the temperature of dual softmax
last, with the chosen setting.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt, ValidationError
from tqdm import tqdm

from model.checkpoint import read_metadata, rewrite_settings, save_checkpoint, stored_dtype
from model.config import Config, EMCLConfig, SearchConfig, problems_of
from model.encoder import DEMO_CHECKPOINT, Encoder
from model.evaluate.run import Corpus
from model.study.per_video_ranks import VideoRanks, describe, keeps_state, variant, video_ranks_of
from model.study.significance import Interval, PairedTest, bootstrap, compare, folds_of, holm

SIGNIFICANCE = 0.05

# Mean reciprocal ranks closer than this are a tie, and what the checkpoint has already stays: how many candidates a
# few hundred validation clips need says little about the corpus that will be searched.
_SAME_RECIPROCAL = 0.001
_LINES = 5  # best and worst settings that are printed
_HEAD = ["ranking", "R@1 t→v", "R@1 v→t", "MRR", "wins", "losses", "p", "p (Holm)"]


class Grid(Config):
    """Values to try; every combination is measured. ``None``: the mode's usual values."""

    modes: tuple[Literal["channel", "reference"], ...] = ("channel", "reference")
    betas: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    bases: tuple[int, ...] | None = None
    iterations: tuple[int, ...] | None = None
    candidates: tuple[PositiveInt, ...] = (50, 100, 200, 500)
    temperatures: tuple[PositiveFloat, ...] = (0.003, 0.01, 0.03, 0.1)

    def settings(self, own: EMCLConfig) -> list[EMCLConfig]:
        """All combinations, and the checkpoint's own setting if its mode is asked for; none twice, none with beta 0.

        Raises ``ValueError`` for values out of range.
        """
        found = dict.fromkeys(self._with_repetitions(own))
        return [config for config in found if config.beta > 0]

    def _with_repetitions(self, own: EMCLConfig) -> Iterator[EMCLConfig]:
        if own.mode in self.modes:
            yield own
        for mode in self.modes:
            usual = USUAL[mode]
            values = (
                self.betas or usual["beta"],
                self.sigmas or usual["sigma"],
                self.bases or usual["num_bases"],
                self.iterations or usual["iterations"],
            )
            for beta, sigma, bases, iterations in itertools.product(*values):
                changes = {"beta": beta, "sigma": sigma, "num_bases": bases, "iterations": iterations, "mode": mode}
                try:
                    yield EMCLConfig.model_validate({**own.model_dump(), **changes})
                except ValidationError as error:
                    raise ValueError(f"the grid holds a value that EMCL cannot have: {problems_of(error)}") from error


# The correction of ``channel`` is relative to the features, that of ``reference`` is not: their strengths differ. A
# reference pass converges in a few iterations, and its bases collapse to two whatever their number (reference §1.3).
USUAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "channel": {
        "beta": (0.05, 0.1, 0.2, 0.3, 0.5),
        "sigma": (0.03, 0.1, 0.3, 1.0),
        "num_bases": (8, 32),
        "iterations": (3, 9),
    },
    "reference": {"beta": (1.0, 3.0), "sigma": (0.03, 1.0), "num_bases": (32,), "iterations": (9,)},
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One ranking against another of the same videos; differences are in points of percent, better ones positive."""

    ranks: PairedTest
    first: tuple[PairedTest, PairedTest]
    reciprocal_difference: Interval
    first_difference: tuple[Interval, Interval]

    @property
    def is_better(self) -> bool:
        """Whether it is better by more than chance."""
        gains = self.ranks.wins > self.ranks.losses and self.reciprocal_difference.mean > 0
        return gains and self.ranks.p < SIGNIFICANCE

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        ways = ("text_to_video", "video_to_text")
        return {
            "wins": self.ranks.wins,
            "losses": self.ranks.losses,
            "p": self.ranks.p,
            "mrr_difference": vars(self.reciprocal_difference),
            "r1_difference": {way: vars(found) for way, found in zip(ways, self.first_difference, strict=True)},
            "r1_p": {way: found.p for way, found in zip(ways, self.first, strict=True)},
        }


def compare_video_ranks(base: VideoRanks, other: VideoRanks, *, seed: int = 0) -> Comparison:
    """Test on reciprocal ranks (sign test) and on first places (McNemar's where a video has one caption)."""
    reciprocal_V = other.reciprocal_ranks - base.reciprocal_ranks
    first_VW = other.first_VW - base.first_VW
    return Comparison(
        ranks=compare(reciprocal_V),
        first=(compare(first_VW[:, 0]), compare(first_VW[:, 1])),
        reciprocal_difference=bootstrap(reciprocal_V, seed=seed).scaled(100),
        first_difference=(
            bootstrap(first_VW[:, 0], seed=seed).scaled(100),
            bootstrap(first_VW[:, 1], seed=seed).scaled(100),
        ),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Tried:
    """One setting of the grid against the ranking without EMCL; ``holm_p`` is corrected for the size of the grid."""

    config: EMCLConfig
    video_ranks: VideoRanks
    ranks: PairedTest
    holm_p: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What was measured and chosen. ``best`` is ``None`` if no setting ranks better than the ranking without EMCL.

    ``tried`` is in order of mean reciprocal rank, best first. ``candidates`` and ``temperatures`` map what was tried
    to its mean reciprocal rank in percent; one that was not varied has a single entry.
    """

    own: EMCLConfig
    baseline: VideoRanks
    tried: list[Tried]
    best: Tried | None
    in_sample: Comparison
    held_out: Comparison
    folds: int
    fold_choices: list[str]
    search: SearchConfig
    candidates: dict[int, float]
    temperatures: dict[float, float]

    def choice(self, *, only_if_better: bool = False) -> EMCLConfig:
        """The setting to use; ``only_if_better`` leaves EMCL out where it does not rank better by more than chance."""
        if self.best is None or (only_if_better and not self.held_out.is_better):
            return self.own.model_copy(update={"beta": 0.0})
        return self.best.config


def calibrate(encoder: Encoder, corpus: Corpus, grid: Grid, *, folds: int = 5, seed: int = 0) -> Calibration:
    """Measure the whole grid. Raises ``ValueError`` for fewer videos than folds, or an empty grid."""
    fold_V = folds_of(len(corpus.mask_VF), folds, seed=seed)
    settings = grid.settings(encoder.config.emcl)
    if not settings:
        raise ValueError("the grid holds no setting with a beta above 0, so there is nothing to choose")
    candidates, by_candidates = _choose_candidates(encoder, corpus, grid.candidates)
    baseline = video_ranks_of(encoder, corpus, None, candidates=candidates)
    bar = tqdm(settings, desc="calibrate", unit="setting")
    all_ranks = [video_ranks_of(encoder, corpus, config, candidates=candidates) for config in bar]
    tried = _test_all(settings, all_ranks, baseline)
    best = tried[0] if tried[0].video_ranks.mean_reciprocal > baseline.mean_reciprocal else None
    held_out, choices = _held_out(settings, all_ranks, baseline, fold_V)
    temperature, by_temperature = _choose_temperature(
        encoder, corpus, best.config if best else None, candidates, grid.temperatures
    )
    return Calibration(
        own=encoder.config.emcl,
        baseline=baseline,
        tried=tried,
        best=best,
        in_sample=compare_video_ranks(baseline, best.video_ranks if best else baseline, seed=seed),
        held_out=compare_video_ranks(baseline, held_out, seed=seed),
        folds=folds,
        fold_choices=choices,
        search=SearchConfig(candidates=candidates, dual_softmax_temperature=temperature),
        candidates=by_candidates,
        temperatures=by_temperature,
    )


def _test_all(settings: Sequence[EMCLConfig], all_ranks: Sequence[VideoRanks], baseline: VideoRanks) -> list[Tried]:
    tests = [compare(video_ranks.reciprocal_ranks - baseline.reciprocal_ranks) for video_ranks in all_ranks]
    corrected = holm([test.p for test in tests])
    tried = [
        Tried(config=config, video_ranks=video_ranks, ranks=test, holm_p=p)
        for config, video_ranks, test, p in zip(settings, all_ranks, tests, corrected, strict=True)
    ]
    return sorted(tried, key=lambda one: -one.video_ranks.mean_reciprocal)


def _held_out(
    settings: Sequence[EMCLConfig],
    all_ranks: Sequence[VideoRanks],
    baseline: VideoRanks,
    fold_V: np.ndarray[Any, Any],
) -> tuple[VideoRanks, list[str]]:
    """Each fold's videos under the setting that is best on the other folds, which may be the one without EMCL."""
    names = [describe(None), *(describe(config) for config in settings)]
    options = [baseline, *all_ranks]
    reciprocal_VW, first_VW = baseline.reciprocal_VW.copy(), baseline.first_VW.copy()
    choices = []
    for fold in range(int(fold_V.max()) + 1):
        inside_V = fold_V == fold
        # max keeps the first of equals, and without EMCL comes first
        chosen = max(range(len(options)), key=lambda i: options[i].take(~inside_V).mean_reciprocal)
        reciprocal_VW[inside_V] = options[chosen].reciprocal_VW[inside_V]
        first_VW[inside_V] = options[chosen].first_VW[inside_V]
        choices.append(names[chosen])
    return VideoRanks(reciprocal_VW=reciprocal_VW, first_VW=first_VW), choices


def _choose_candidates(encoder: Encoder, corpus: Corpus, counts: Sequence[int]) -> tuple[int, dict[int, float]]:
    """Only numbers below that of the videos can be distinguished here; the checkpoint's own stays in a tie."""
    own = encoder.config.search.candidates
    videos = len(corpus.mask_VF)
    tried = sorted({own, *(count for count in counts if count < videos)})
    figures = {
        count: video_ranks_of(encoder, corpus, None, candidates=count).mean_reciprocal
        for count in tqdm(tried, desc="candidates", unit="number", disable=len(tried) == 1)
    }
    return int(_best_or_own(figures, own)), {count: 100 * figure for count, figure in figures.items()}


def _choose_temperature(
    encoder: Encoder, corpus: Corpus, config: EMCLConfig | None, candidates: int, temperatures: Sequence[float]
) -> tuple[float, dict[float, float]]:
    own = encoder.config.search.dual_softmax_temperature
    figures = {
        temperature: video_ranks_of(
            encoder, corpus, config, candidates=candidates, dual_softmax_temperature=temperature
        ).mean_reciprocal
        for temperature in tqdm(sorted({own, *temperatures}), desc="dual softmax", unit="temperature")
    }
    return _best_or_own(figures, own), {value: 100 * figure for value, figure in figures.items()}


def _best_or_own(figures: dict[Any, float], own: float) -> float:
    best = max(figures, key=lambda value: figures[value])
    return float(own if figures[best] - figures[own] <= _SAME_RECIPROCAL else best)


def table(found: Calibration) -> str:
    """The grid as a Markdown table: without EMCL first, then the best and the worst settings."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|---" * len(_HEAD) + "|"]
    lines.append(_line("without EMCL", found.baseline, ["", "", "", ""]))
    shown = found.tried if len(found.tried) <= 2 * _LINES + 1 else found.tried[:_LINES]
    lines += [_tried_line(one) for one in shown]
    if len(shown) < len(found.tried):
        lines.append(f"| … {len(found.tried) - 2 * _LINES} more settings |" + " |" * (len(_HEAD) - 1))
        lines += [_tried_line(one) for one in found.tried[-_LINES:]]
    return "\n".join(lines)


def _tried_line(one: Tried) -> str:
    test = one.ranks
    return _line(
        describe(one.config), one.video_ranks, [str(test.wins), str(test.losses), f"{test.p:.2g}", f"{one.holm_p:.2g}"]
    )


def _line(name: str, video_ranks: VideoRanks, cells: list[str]) -> str:
    first = [f"{100 * value:.1f}" for value in video_ranks.first_VW.mean(axis=0)]
    return "| " + " | ".join([name, *first, f"{100 * video_ranks.mean_reciprocal:.2f}", *cells]) + " |"


def verdict(found: Calibration) -> str:
    """The findings, and whether they are significant."""
    videos = len(found.baseline.reciprocal_ranks)
    lines = [f"{len(found.tried)} settings, {videos} videos, {found.search.candidates} candidates."]
    if found.best is None:
        lines.append("No setting ranks better than without EMCL: beta 0 is chosen.")
    else:
        inside = found.in_sample
        lines.append(
            f"Best by mean reciprocal rank: {describe(found.best.config)}; against no EMCL, on the videos it was "
            f"chosen on: {inside.ranks.wins} videos better, {inside.ranks.losses} worse, MRR "
            f"{inside.reciprocal_difference.text(2, sign=True)} points."
        )
    held = found.held_out
    lines.append(
        f"Held out ({found.folds} folds, chosen on the others): {held.ranks.wins} videos better, {held.ranks.losses} "
        f"worse, sign test p = {held.ranks.p:.2g}; MRR {held.reciprocal_difference.text(2, sign=True)}, R@1 text → "
        f"video {held.first_difference[0].text(1, sign=True)} (p = {held.first[0].p:.2g}), video → text "
        f"{held.first_difference[1].text(1, sign=True)} (p = {held.first[1].p:.2g}) points, 95 % bootstrap intervals."
    )
    if held.is_better:
        lines.append(f"Better than without EMCL beyond chance (p < {SIGNIFICANCE:g}).")
    else:
        worse = held.ranks.p < SIGNIFICANCE and held.ranks.losses > held.ranks.wins
        also = " It is worse beyond chance: --only-if-significant leaves EMCL out." if worse else ""
        lines.append(f"Not better than without EMCL beyond chance.{also}")
    lines.append(
        f"Candidates, without EMCL: {_figures(found.candidates)}; {found.search.candidates} chosen. Temperature of "
        f"dual softmax: {_figures(found.temperatures)}; {found.search.dual_softmax_temperature:g} chosen."
    )
    return "\n".join(lines)


def _figures(figures: dict[Any, float]) -> str:
    return ", ".join(f"{value:g} (MRR {figure:.2f})" for value, figure in figures.items())


def as_dict(found: Calibration) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "without_emcl": _figures_of(found.baseline),
        "best": None if found.best is None else _tried_dict(found.best),
        "in_sample": found.in_sample.as_dict(),
        "held_out": {
            **found.held_out.as_dict(),
            "folds": found.folds,
            "choices": found.fold_choices,
            "better_beyond_chance": found.held_out.is_better,
        },
        "search": found.search.model_dump(),
        "candidates_mrr": found.candidates,
        "dual_softmax_mrr": found.temperatures,
        "settings": [_tried_dict(one) for one in found.tried],
    }


def record(found: Calibration, chosen: EMCLConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint remembers of it: on which data (``facts``), out of how many, and how sure."""
    return {
        **facts,
        "emcl": chosen.model_dump(mode="json"),
        "search": found.search.model_dump(),
        "settings_tried": len(found.tried),
        "without_emcl": _figures_of(found.baseline),
        "held_out": found.held_out.as_dict(),
        "better_beyond_chance": found.held_out.is_better,
    }


def _tried_dict(one: Tried) -> dict[str, Any]:
    test = one.ranks
    tests = {"wins": test.wins, "losses": test.losses, "p": test.p, "p_holm": one.holm_p}
    return {"emcl": one.config.model_dump(mode="json"), **_figures_of(one.video_ranks), **tests}


def _figures_of(video_ranks: VideoRanks) -> dict[str, float]:
    first = 100 * video_ranks.first_VW.mean(axis=0)
    return {
        "mrr": 100 * video_ranks.mean_reciprocal,
        "text_to_video_r1": float(first[0]),
        "video_to_text_r1": float(first[1]),
    }


def check_target(model: str, output: Path | None, *, dry_run: bool) -> None:
    """Find out before the work whether the choice can be written. Raises ``ValueError``, ``FileExistsError``."""
    if dry_run:
        return
    if output is None:
        if model == "demo" or not _is_checkpoint(model):
            raise ValueError(
                f"--model {model} is not a checkpoint file that a choice can be written into; pass --output "
                "NEW.safetensors for a new one, or --dry-run"
            )
        return
    if output.suffix != ".safetensors":
        raise ValueError(f"--output is {output}, expected the name of a checkpoint: NEW.safetensors")
    for file in (output.with_suffix(".safetensors"), output.with_suffix(".json")):
        if file.exists():
            raise FileExistsError(f"--output {file} exists already; name another, or pass it as --model to change it")


def store_choice(
    encoder: Encoder,
    model: str,
    output: Path | None,
    *,
    emcl: EMCLConfig,
    search: SearchConfig,
    record: dict[str, Any],
) -> str:
    """Write settings and record into the checkpoint, or into a new one; return a message for the user.

    Strength, kernel width and iterations are only in NAME.json, which is replaced atomically. Another mode or number
    of bases has another state, which is saved with the weights, and another fingerprint.
    """
    source = DEMO_CHECKPOINT if model == "demo" else Path(model) if _is_checkpoint(model) else None
    metadata = {**(read_metadata(source) if source else {}), "calibration": record}
    same_model = keeps_state(encoder.config.emcl, emcl)
    if output is None and same_model and source is not None:
        path = rewrite_settings(source, emcl=emcl, search=search, metadata=metadata)
    else:
        changed = variant(encoder, emcl).net
        changed.config = encoder.config.model_copy(update={"emcl": emcl, "search": search})
        target = output or source
        assert target is not None  # check_target refused it
        path = save_checkpoint(changed, target, metadata=metadata, dtype=stored_dtype(source) if source else "fp32")
    return f"written: {path.with_suffix('.json')}\n{_consequence(path, same_model)}"


def _consequence(path: Path, same_model: bool) -> str:
    if same_model:
        return (
            "The fingerprint stays: indexes of this model keep working. Refit their frozen map with "
            f"`emcl index rebuild --store STORE --model {path}`, and restart services that have it loaded."
        )
    return (
        "Mode, number of bases or seed changed, and with them EMCL's state and the fingerprint: indexes of the old "
        f"checkpoint are refused now. Build them again with `emcl index build PATH... --store NEW --model {path}`."
    )


def _is_checkpoint(model: str) -> bool:
    return model.endswith(".safetensors") or Path(model).with_suffix(".safetensors").is_file()
