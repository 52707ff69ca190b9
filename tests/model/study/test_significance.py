"""Paired tests and intervals against obvious computations: enumeration, the normal formula, a textbook example."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from model.study import significance
from model.study.compare import compare_runs, paired_t_test, t_test, two_sided_p
from model.study.per_video_ranks import VideoRanks
from model.study.significance import bootstrap, compare, folds_of, holm, sign_test
from service.cli import app


@pytest.mark.parametrize("total", range(1, 11))
def test_sign_test_counts_all_fair_outcomes(total):
    """Of all 2^n sequences of coin tosses, those whose split is at least as uneven."""
    sizes = [sum(tosses) for tosses in itertools.product((0, 1), repeat=total)]
    for wins in range(total + 1):
        as_uneven = sum(abs(2 * size - total) >= abs(2 * wins - total) for size in sizes)
        assert sign_test(wins, total - wins) == pytest.approx(as_uneven / 2**total)


def test_sign_test_of_many_units_does_not_overflow():
    assert sign_test(3000, 2000) < 1e-40
    assert sign_test(2500, 2500) == 1.0
    assert sign_test(0, 0) == 1.0
    # the normal approximation with continuity correction
    z = (abs(1030 - 970) - 1) / math.sqrt(2000)
    assert sign_test(1030, 970) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_of_outcomes_found_or_not_it_is_mcnemars_test():
    before = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 1], float)
    after = np.array([1, 1, 0, 1, 1, 1, 1, 1, 0, 1], float)
    found = compare(after - before)
    assert (found.wins, found.losses) == (5, 1)
    assert found.p == pytest.approx(2 * (math.comb(6, 0) + math.comb(6, 1)) / 2**6)


def test_ties_take_no_part():
    assert compare(np.array([0.0, 1e-15, -1e-15])).p == 1.0
    assert compare(np.array([0.5, 0.5, 0.0])) == compare(np.array([0.1, 0.2]))


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_what_is_not_one_number_for_each_video_is_refused(values):
    for call in (compare, bootstrap):
        with pytest.raises(ValueError, match="one finite number for each video"):
            call(values)


def test_holm_agrees_with_a_worked_example():
    """Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    interval = bootstrap(values, resamples=4000)
    error = values.std() / math.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_bootstrap_is_that_of_its_seed(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)
    monkeypatch.setattr(significance, "DRAWS_AT_ONCE", 500)  # ten resamplings at a time
    in_parts = bootstrap(values, seed=3)
    assert (in_parts.low, in_parts.high) != (0.0, 0.0)
    assert in_parts.low == pytest.approx(bootstrap(values, seed=5).low, abs=0.1)


def test_pairs_that_all_differ_alike_leave_no_doubt():
    interval = bootstrap(np.full(7, 0.25)).scaled(100)
    assert (interval.mean, interval.low, interval.high) == (25.0, 25.0, 25.0)
    assert interval.text(1, sign=True) == "+25.0 [+25.0, +25.0]"


def test_folds_are_even_and_those_of_their_seed():
    fold = folds_of(23, 5, seed=1)
    assert sorted(np.bincount(fold)) == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(fold, folds_of(23, 5, seed=1))
    assert not np.array_equal(fold, folds_of(23, 5, seed=2))
    for folds in (1, 24):
        with pytest.raises(ValueError, match="2 to 23"):
            folds_of(23, folds)


def video_ranks(hits):
    first_VW = np.stack([hits, hits], axis=1).astype(float)
    return VideoRanks(reciprocal_VW=first_VW, first_VW=first_VW)


def all_video_ranks(rates, seed=0):
    """One video_ranks for each rate, of 200 videos that agree between seeds as far as they can."""
    levels = np.random.default_rng(seed).permutation(200) / 200
    return [video_ranks(levels < rate) for rate in rates]


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    # Student's table: two-sided 5 %, 1 % and 10 % points.
    [(12.706, 1, 0.05), (4.303, 2, 0.05), (3.182, 3, 0.05), (2.776, 4, 0.05), (9.925, 2, 0.01), (1.812, 10, 0.1)],
)
def test_p_values_are_those_of_the_table(t, degrees, p):
    assert two_sided_p(t, degrees) == pytest.approx(p, rel=2e-3)
    assert two_sided_p(-t, degrees) == two_sided_p(t, degrees)


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 8])
def test_p_values_are_the_area_of_the_tails(degrees):
    grid = np.linspace(-1.3, 1.3, 200_001)
    density = (1 + grid**2 / degrees) ** (-(degrees + 1) / 2)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    inside = float(np.sum((density[1:] + density[:-1]) / 2 * np.diff(grid))) * scale
    assert two_sided_p(1.3, degrees) == pytest.approx(1 - inside, abs=1e-9)


def test_the_t_test_is_students():
    found = paired_t_test(np.array([1.0, 2.0, 3.0]))
    assert (found.t, found.degrees) == (pytest.approx(2 * math.sqrt(3)), 2)
    found = t_test(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0]))
    assert (found.t, found.degrees) == (pytest.approx(-1 / math.sqrt(4 / 3 * (1 / 3 + 1 / 2))), 3)
    assert math.isnan(paired_t_test(np.array([1.0])).p)


def test_three_better_seeds_are_a_claim():
    found = compare_runs(all_video_ranks([0.60, 0.62, 0.61]), all_video_ranks([0.50, 0.515, 0.505]))
    assert found.may_claim
    assert found.paired
    assert "text → video: better beyond chance" in found.verdict()
    assert found.ways[0].difference.mean == pytest.approx(10.33, abs=0.01)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (2, 2), (3, 2), (1, 5)])
def test_below_three_seeds_nothing_is_claimed(ours, theirs):
    found = compare_runs(all_video_ranks([0.9] * ours), all_video_ranks([0.1] * theirs))
    assert not found.may_claim
    assert found.verdict().startswith(f"No claim: {min(ours, theirs)} seed")
    assert "beyond chance" not in found.text()


def test_seeds_that_disagree_are_no_difference():
    found = compare_runs(all_video_ranks([0.3, 0.7, 0.5]), all_video_ranks([0.5, 0.42, 0.5]))
    assert "text → video: no difference beyond chance" in found.verdict()


def test_other_numbers_of_seeds_are_not_paired():
    found = compare_runs(all_video_ranks([0.6, 0.62, 0.61, 0.63]), all_video_ranks([0.5, 0.51, 0.52]))
    assert not found.paired
    assert found.ways[0].seeds.degrees == 5


def test_the_command_compares_and_says_what_it_cannot_claim(tiny_checkpoint, validation_folder, tmp_path):
    options = ["--against", tiny_checkpoint, "--data", validation_folder, "--split", "val", "--device", "cpu"]
    result = CliRunner().invoke(
        app, ["compare", str(tiny_checkpoint), *map(str, options), "--json", str(tmp_path / "c")]
    )
    assert result.exit_code == 0, result.output
    assert "No claim: 1 seed on a side" in result.output
    assert (tmp_path / "c").exists()


def test_a_run_that_is_none_is_named(validation_folder, tiny_checkpoint, tmp_path):
    options = ["--against", str(tmp_path), "--data", str(validation_folder)]
    result = CliRunner().invoke(app, ["compare", str(tiny_checkpoint), *options])
    assert isinstance(result.exception, FileNotFoundError)
    assert str(tmp_path) in str(result.exception)
