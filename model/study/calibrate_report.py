"""What ``emcl calibrate`` tells: a table and a verdict for people, a mapping for JSON, a record for the checkpoint."""

from __future__ import annotations

from typing import Any

from model.config import EMCLConfig
from model.study.calibrate import SIGNIFICANCE, Calibration, Tried
from model.study.per_video_ranks import Outcome, describe

_LINES = 5  # best and worst settings that are printed
_HEAD = ["ranking", "R@1 t→v", "R@1 v→t", "MRR", "wins", "losses", "p", "p (Holm)"]


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
        describe(one.config), one.outcome, [str(test.wins), str(test.losses), f"{test.p:.2g}", f"{one.holm_p:.2g}"]
    )


def _line(name: str, outcome: Outcome, cells: list[str]) -> str:
    first = [f"{100 * value:.1f}" for value in outcome.first_VW.mean(axis=0)]
    return "| " + " | ".join([name, *first, f"{100 * outcome.mean_reciprocal:.2f}", *cells]) + " |"


def verdict(found: Calibration) -> str:
    """Say what was found, and whether it is more than chance."""
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
    return {"emcl": one.config.model_dump(mode="json"), **_figures_of(one.outcome), **tests}


def _figures_of(outcome: Outcome) -> dict[str, float]:
    first = 100 * outcome.first_VW.mean(axis=0)
    return {
        "mrr": 100 * outcome.mean_reciprocal,
        "text_to_video_r1": float(first[0]),
        "video_to_text_r1": float(first[1]),
    }
