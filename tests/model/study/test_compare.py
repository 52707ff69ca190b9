"""``emcl compare``: tests over seeds and over videos, and no claim from single models."""

import math

import numpy as np
import pytest
from typer.testing import CliRunner

from model.study.compare import compare_runs, paired_t_test, t_test, two_sided_p
from model.study.per_video_ranks import VideoRanks
from service.cli import app


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
