"""Ranks, recall and dual softmax against the reference's figures, ties and NaN."""

from pathlib import Path

import numpy as np
import pytest

from model.metrics import evaluate_similarity, ranks_of_matches, retrieval_metrics
from model.similarity import dual_softmax

GOLDEN = Path(__file__).parent / "data" / "golden" / "metrics.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def assert_equals_reference(metrics, golden, prefix):
    for k in (1, 5, 10, 50):
        assert metrics.recall[k] == golden[f"{prefix}/R{k}"]
    assert metrics.median_rank == golden[f"{prefix}/MedianR"]
    assert metrics.mean_rank == pytest.approx(golden[f"{prefix}/MeanR"], abs=1e-12)


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_ranks_and_figures_equal_the_reference(golden, direction):
    similarity = golden["sim"] if direction == "t2v" else golden["sim"].T
    np.testing.assert_array_equal(ranks_of_matches(similarity), golden[f"{direction}/ranks0"])
    assert_equals_reference(evaluate_similarity(similarity), golden, direction)


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_dual_softmax_equals_the_reference(golden, direction):
    similarity = golden["sim"] if direction == "t2v" else golden["sim"].T
    name = "dsl_t2v_matrix" if direction == "t2v" else "dsl_v2t_matrix_TV"
    expected = golden[name] if direction == "t2v" else golden[name].T
    weighted = dual_softmax(similarity)
    np.testing.assert_allclose(weighted, expected, rtol=2e-5, atol=1e-12)
    np.testing.assert_array_equal(ranks_of_matches(weighted), golden[f"dsl_{direction}/ranks_float64"])
    assert_equals_reference(evaluate_similarity(weighted), golden, f"dsl_{direction}")


def test_ties_take_the_average_rank(golden):
    similarity = golden["tie_sim"]
    np.testing.assert_array_equal(ranks_of_matches(similarity), golden["tie_ranks_average"])
    metrics = evaluate_similarity(similarity)
    assert metrics.recall[1] == golden["tie_average_rule/R1"]
    assert metrics.median_rank == golden["tie_average_rule/MedR"]
    assert metrics.mean_rank == golden["tie_average_rule/MeanR"]


def test_nan_is_an_error_and_says_how_many_queries_have_one():
    similarity = np.eye(4)
    similarity[2, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 4 queries"):
        ranks_of_matches(similarity)


def test_minus_infinity_ranks_last():
    similarity = np.array([[0.1, -np.inf], [0.3, 0.2]])
    np.testing.assert_array_equal(ranks_of_matches(similarity), [0, 1])


def test_a_match_can_stand_in_any_column():
    similarity = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    np.testing.assert_array_equal(ranks_of_matches(similarity, np.array([2, 0])), [1, 0])


@pytest.mark.parametrize("shape", [(2, 3), (0, 0), (3,)])
def test_without_matches_only_a_square_matrix_is_accepted(shape):
    with pytest.raises(ValueError, match=r"square|non-empty"):
        ranks_of_matches(np.zeros(shape))


def test_standard_error_is_binomial():
    metrics = retrieval_metrics(np.array([0.0] * 60 + [7.0] * 40))
    assert metrics.recall == {1: 60.0, 5: 60.0, 10: 100.0, 50: 100.0}
    assert metrics.recall_errors[1] == pytest.approx(100 * np.sqrt(0.6 * 0.4 / 100))
    assert metrics.as_dict()["R@1_se"] == metrics.recall_errors[1]


def test_dual_softmax_keeps_what_is_no_candidate_last():
    similarity = np.array([[0.9, -np.inf, 0.2], [0.1, -np.inf, 0.3], [0.0, -np.inf, -0.2]])
    weighted = dual_softmax(similarity)
    assert np.isneginf(weighted[:, 1]).all()
    assert np.isfinite(weighted[:, [0, 2]]).all()
