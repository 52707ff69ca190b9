"""Dual softmax and QB-Norm: equal to the reference's figures, safe in numbers, block by block as at once."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluate.hubness import BankNorm, ColumnLogSums, DualSoftmax, dual_softmax
from model.evaluate.metrics import evaluate_similarity, ranks_of_matches, retrieval_metrics


@pytest.fixture
def arrays(golden):
    return golden("metrics")


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_dual_softmax_equals_the_reference(arrays, direction):
    similarity = arrays["sim"] if direction == "t2v" else arrays["sim"].T
    name = "dsl_t2v_matrix" if direction == "t2v" else "dsl_v2t_matrix_TV"
    expected = arrays[name] if direction == "t2v" else arrays[name].T
    weighted = dual_softmax(similarity)
    np.testing.assert_allclose(weighted, expected, rtol=2e-5, atol=1e-12)
    np.testing.assert_array_equal(ranks_of_matches(weighted), arrays[f"dsl_{direction}/ranks_float64"])
    found = evaluate_similarity(weighted)
    for k in (1, 5, 10, 50):
        assert found.recall[k] == arrays[f"dsl_{direction}/R{k}"]
    assert found.median_rank == arrays[f"dsl_{direction}/MedianR"]
    assert found.mean_rank == pytest.approx(arrays[f"dsl_{direction}/MeanR"])


def test_dual_softmax_of_some_rows_is_that_of_all():
    similarity = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    fitted = DualSoftmax.fit(similarity)
    np.testing.assert_array_equal(fitted.rescore(similarity[3:5]), dual_softmax(similarity)[3:5])


def test_dual_softmax_keeps_what_is_no_candidate_last():
    similarity = np.array([[0.9, -np.inf, 0.2], [0.1, -np.inf, 0.3], [0.0, -np.inf, -0.2]])
    weighted = dual_softmax(similarity)
    assert np.isneginf(weighted[:, 1]).all()
    assert np.isfinite(weighted[:, [0, 2]]).all()


def fit(bank, top=1, beta=20.0, step=17):
    return BankNorm.fit(
        (bank[start : start + step] for start in range(0, len(bank), step)), bank.shape[1], beta=beta, top=top
    )


@pytest.mark.parametrize("top", [1, 3])
def test_qb_norm_equals_the_reference(arrays, top):
    bank, test = arrays["qb_bank_sims"], arrays["qb_test_sims"]
    norm = fit(bank, top, float(arrays[f"qb_k{top}/beta"]))
    np.testing.assert_array_equal(np.flatnonzero(norm.activated_N), np.sort(arrays[f"qb_k{top}/activation_set"]))
    np.testing.assert_array_equal(norm.applies(test), arrays[f"qb_k{top}/row_normalised"])
    np.testing.assert_allclose(norm.ratios(test), arrays[f"qb_k{top}/result"], rtol=1e-10)
    found = evaluate_similarity(norm.rescore(test))
    for k in (1, 5, 10):
        assert found.recall[k] == arrays[f"qb_k{top}/R{k}"]
    assert found.median_rank == arrays[f"qb_k{top}/MedR"]
    assert round(found.mean_rank, 1) == arrays[f"qb_k{top}/MeanR"], "the authors round it"
    assert found == evaluate_similarity(arrays[f"qb_k{top}/result"])


def test_qb_norm_ranks_as_its_own_ratios_and_leaves_its_input(arrays):
    bank, test = arrays["qb_bank_sims"], arrays["qb_test_sims"]
    before = test.copy()
    norm = fit(bank)
    np.testing.assert_array_equal(np.argsort(-norm.rescore(test), axis=1), np.argsort(-arrays["qb_k1/result"], axis=1))
    np.testing.assert_array_equal(test, before)


@pytest.mark.filterwarnings("error")
def test_qb_norm_survives_scores_that_overflow_in_the_reference():
    """beta · s of 20,000 (logits of a scaled cosine) has no exponential in any format."""
    rng = np.random.default_rng(0)
    bank, test = 1000 * rng.normal(size=(9, 6)), 1000 * rng.normal(size=(4, 6))
    norm = fit(bank, top=6)
    rescored = norm.rescore(test)
    assert np.isfinite(rescored).all()
    np.testing.assert_allclose(rescored, test - bank.max(axis=0) + np.log(9) / 20, atol=1)


def test_a_row_whose_best_is_no_hub_stays_as_it_is():
    bank = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.1]])
    test = np.array([[0.1, 0.9, 0.2], [0.9, 0.85, 0.2], [-np.inf, 0.5, 0.4], [-np.inf, -np.inf, -np.inf]])
    norm = fit(bank)
    np.testing.assert_array_equal(norm.activated_N, [True, False, False])
    rescored = norm.rescore(test)
    np.testing.assert_array_equal(rescored[[0, 2, 3]], test[[0, 2, 3]])
    assert rescored[1].argmax() == 1, "the hub loses its first place"


def test_a_hub_is_demoted_by_a_bank():
    """One video that is near to everything comes first for nearly every caption, until the bank shows it."""
    rng = np.random.default_rng(0)
    test = 0.1 * rng.normal(size=(30, 30)) + 0.3 * np.eye(30)
    bank = 0.1 * rng.normal(size=(200, 30))
    for similarity in (test, bank):
        similarity[:, 7] += 0.5
    norm = fit(bank)
    assert norm.hubness.argmax() == 7
    assert evaluate_similarity(test).recall[1] < 20
    assert evaluate_similarity(norm.rescore(test)).recall[1] > 60


def test_hubness_is_in_the_scale_of_the_similarities():
    np.testing.assert_allclose(fit(np.full((40, 3), 0.25)).hubness, 0.25)


def test_statistics_survive_being_written():
    norm = fit(np.random.default_rng(0).normal(size=(9, 6)), top=2)
    again = BankNorm.from_arrays(norm.to_arrays())
    test = np.random.default_rng(1).normal(size=(4, 6))
    np.testing.assert_array_equal(again.rescore(test), norm.rescore(test))
    assert (again.beta, again.top, again.queries) == (20.0, 2, 9)


def test_damaged_statistics_are_refused():
    arrays = fit(np.eye(3)).to_arrays()
    with pytest.raises(ValueError, match=r"lacks the arrays \['beta'\]"):
        BankNorm.from_arrays({name: array for name, array in arrays.items() if name != "beta"})
    with pytest.raises(ValueError, match="as many flags"):
        BankNorm.from_arrays({**arrays, "activated": np.ones(2, bool)})


def test_a_bank_must_say_something_of_every_item():
    with pytest.raises(ValueError, match="bank of 0 queries"):
        BankNorm.fit([], 3)
    with pytest.raises(ValueError, match="nothing of 1 items"):
        BankNorm.fit([np.array([[0.1, -np.inf]])], 2)
    with pytest.raises(ValueError, match="damaged features"):
        BankNorm.fit([np.array([[0.1, np.nan]])], 2)
    with pytest.raises(ValueError, match="top from 1 to the 2 items"):
        BankNorm.fit([np.eye(2)], 2, top=3)


def test_log_sums_do_not_depend_on_the_blocks():
    matrix = np.random.default_rng(0).normal(size=(30, 4)) * 300
    matrix[:10, 2] = -np.inf
    whole, parts = ColumnLogSums(4, 20.0), ColumnLogSums(4, 20.0)
    whole.add(matrix)
    for row in matrix:
        parts.add(row[None])
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-12)
    expected = [np.logaddexp.reduce(20.0 * column) for column in matrix.T]
    np.testing.assert_allclose(whole.values, expected, rtol=1e-12)


SETTINGS = {"k1_b20": (1, 20.0), "k1_b1.99": (1, 1.99), "k5_b20": (5, 20.0), "k1_b0.8": (1, 0.8)}


def figures(scores):
    found = retrieval_metrics(ranks_of_matches(scores))
    return [*(round(found.recall[k], 1) for k in (1, 5, 10)), found.median_rank, round(found.mean_rank, 1)]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("way", ["t2v", "v2t"])
def test_qb_norm_both_ways(golden, name, way):
    arrays, (top, beta) = golden("rest/hubness_variants"), SETTINGS[name]
    test = arrays["test_f64"] if way == "t2v" else arrays["test_f64"].T
    bank = arrays["bank_f64"] if way == "t2v" else arrays["bank_videos_f64"]
    norm = BankNorm.fit([bank[:17], bank[17:]], bank.shape[1], beta=beta, top=top)
    if way == "t2v":
        assert np.flatnonzero(norm.activated_N).tolist() == sorted(arrays[f"dis/{name}/activated"])
    # Released rows are ratios; those that were left alone are similarities. Relative: ratios are as small as 1e-6.
    np.testing.assert_allclose(norm.ratios(test), arrays[f"dis/{name}/{way}_f64"], rtol=1e-9)
    assert figures(norm.rescore(test)) == pytest.approx(arrays[f"dis/{name}/{way}_metrics_f64"], abs=0.051)


def test_dual_softmax_both_ways(golden):
    arrays = golden("rest/hubness_variants")
    test = arrays["test_f64"]
    # The released float32 rounds exponents of up to 100 by some 6e-6, which is a relative error of the result.
    np.testing.assert_allclose(dual_softmax(test), arrays["dsl_emcl/t2v"], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(dual_softmax(test.T), arrays["dsl_emcl/v2t_VT"], rtol=2e-5, atol=1e-6)
    assert figures(dual_softmax(test)) == pytest.approx(arrays["dsl_emcl/t2v/metrics_f64"], abs=0.051)
    ranks = ranks_of_matches(dual_softmax(test))
    assert sorted(ranks.tolist()) == sorted(arrays["dsl_emcl/t2v_ranks_float64"].tolist())
