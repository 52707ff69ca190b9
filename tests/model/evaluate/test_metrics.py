"""Ranks and recall against the reference's figures, one and several sentences, ties and NaN."""

import numpy as np
import pytest

from model.evaluate import metrics as module
from model.evaluate.metrics import (
    best_sentence,
    best_sentence_metrics,
    evaluate_similarity,
    multi_sentence_metrics,
    ranks_of_matches,
    retrieval_metrics,
    sentence_starts,
    shift_msvd_cuts,
    single_sentence_metrics,
    text_to_video_metrics,
    tied_places,
)


@pytest.fixture
def arrays(golden):
    return golden("metrics")


@pytest.fixture(params=[1 << 22, 100], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", request.param)


def assert_equals_reference(metrics, arrays, prefix, rel=1e-12):
    for k in (1, 5, 10, 50):
        assert metrics.recall[k] == pytest.approx(arrays[f"{prefix}/R{k}"], rel=rel)
    assert metrics.median_rank == arrays[f"{prefix}/MedianR"]
    assert metrics.mean_rank == pytest.approx(arrays[f"{prefix}/MeanR"], abs=1e-12)


def owners(arrays):
    return np.repeat(np.arange(len(arrays["ms_counts"])), arrays["ms_counts"])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_ranks_and_figures_equal_the_reference(arrays, direction):
    similarity = arrays["sim"] if direction == "t2v" else arrays["sim"].T
    np.testing.assert_array_equal(ranks_of_matches(similarity), arrays[f"{direction}/ranks0"])
    assert_equals_reference(evaluate_similarity(similarity), arrays, direction)
    assert_equals_reference(single_sentence_metrics(similarity), arrays, direction)


@pytest.mark.usefixtures("blocks")
def test_several_sentences_equal_the_reference_but_for_its_lower_median(arrays):
    similarity, owner = arrays["ms_sim"], owners(arrays)
    np.testing.assert_array_equal(ranks_of_matches(similarity, owner), arrays["ms_t2v/ranks0"])
    ours = text_to_video_metrics(similarity, owner)
    assert ours.median_rank == arrays["ms_t2v/MedianR_midpoint"]
    assert_equals_reference(multi_sentence_metrics(similarity, owner), arrays, "ms_t2v", rel=1e-6)
    np.testing.assert_array_equal(best_sentence(similarity.T, owner), arrays["ms_v2t_matrix"])
    assert_equals_reference(evaluate_similarity(best_sentence(similarity.T, owner)), arrays, "ms_v2t")
    assert_equals_reference(best_sentence_metrics(similarity.T, owner), arrays, "ms_v2t")


def test_the_lower_median_is_the_reference_s_alone():
    similarity, owner = np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])
    assert text_to_video_metrics(similarity, owner).median_rank == 1.5
    assert multi_sentence_metrics(similarity, owner).median_rank == 1


def test_our_cut_points_are_not_those_of_the_msvd_loader(arrays):
    shifted = multi_sentence_metrics(*shift_msvd_cuts(arrays["ms_sim"], owners(arrays)))
    assert_equals_reference(shifted, arrays, "ms_t2v_offbyone", rel=1e-6)
    assert text_to_video_metrics(arrays["ms_sim"], owners(arrays)).queries == shifted.queries + 1


@pytest.mark.parametrize("counts", [[1, 1], [2, 1, 3], [40, 41, 39, 1]])
def test_the_cuts_of_the_msvd_loader_lose_one_sentence_of_each_video_but_the_first(counts):
    owner = np.repeat(np.arange(len(counts)), counts)
    similarity = (owner[:, None] == np.arange(len(counts))).astype(float)  # every sentence finds its own video first
    assert text_to_video_metrics(similarity, owner).recall[1] == 100
    shifted = multi_sentence_metrics(*shift_msvd_cuts(similarity, owner))
    sentences, wrong = len(owner) - 1, len(counts) - 1
    assert shifted.queries == sentences
    assert shifted.recall[1] == pytest.approx(100 * (sentences - wrong) / sentences)


def test_several_sentences_are_ranked_as_written_out():
    rng = np.random.default_rng(1)
    counts = np.array([1, 4, 2, 1])
    owner = np.repeat(np.arange(4), counts)
    similarity = rng.normal(size=(8, 4))
    own_ranks = [sorted(row, reverse=True).index(row[video]) for row, video in zip(similarity, owner, strict=True)]
    assert text_to_video_metrics(similarity, owner).mean_rank == pytest.approx(np.mean(own_ranks) + 1)
    found = []
    for video in range(4):
        best = [max(similarity[t, video] for t in range(8) if owner[t] == other) for other in range(4)]
        found.append(sorted(best, reverse=True).index(best[video]))
    assert evaluate_similarity(best_sentence(similarity.T, owner)).mean_rank == pytest.approx(np.mean(found) + 1)


@pytest.mark.parametrize("owner", [[0, 1, 0], [1, 1, 2], [0, 2], [1, 0], []])
def test_sentences_that_do_not_stand_together_are_refused(owner):
    with pytest.raises(ValueError, match="stand together"):
        sentence_starts(np.array(owner, int))


@pytest.mark.usefixtures("blocks")
def test_ties_take_the_average_rank(arrays):
    similarity = arrays["tie_sim"]
    np.testing.assert_array_equal(ranks_of_matches(similarity), arrays["tie_ranks_average"])
    metrics = evaluate_similarity(similarity)
    assert metrics.recall[1] == arrays["tie_average_rule/R1"]
    assert metrics.recall[5] == arrays["tie_average_rule/R5"]
    assert metrics.median_rank == arrays["tie_average_rule/MedR"]
    assert metrics.mean_rank == arrays["tie_average_rule/MeanR"]


def test_the_reference_counts_every_tied_place_and_only_under_its_name(arrays):
    np.testing.assert_array_equal(tied_places(arrays["tie_sim"]), arrays["tie_reference/cols"])
    assert_equals_reference(single_sentence_metrics(arrays["tie_sim"]), arrays, "tie_reference")
    assert single_sentence_metrics(arrays["tie_sim"]).queries == 10
    assert evaluate_similarity(arrays["tie_sim"]).queries == 4


@pytest.mark.usefixtures("blocks")
def test_nan_is_an_error_and_says_how_many_queries_have_one():
    similarity = np.eye(60)
    similarity[2, 3] = similarity[40, 40] = np.nan
    with pytest.raises(ValueError, match="2 of 60 queries"):
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
