"""Dual softmax and QB-Norm, both ways, against the released classes' numbers (``golden/rest/hubness_variants``)."""

import numpy as np
import pytest

from model.evaluate.hubness import BankNorm, dual_softmax
from model.evaluate.metrics import ranks_of_matches, retrieval_metrics

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
