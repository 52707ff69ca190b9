"""Paired bases: the Gaussian likelihood ratio, by EM and in closed form, independent of rotations and of order."""

import numpy as np
import pytest

from model.emcl.hub import unit
from model.emcl.paired import PairedBases, PairStatistics, expectation_maximization, spread

DIM, BASES = 8, 3


@pytest.fixture
def pairs():
    """Texts and videos that share three directions, with noise of their own."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2000, BASES))
    return tuple(shared @ rng.normal(size=(BASES, DIM)) + rng.normal(size=(2000, DIM)) + 0.5 for _ in range(2))


def gaussian_log_ratio(statistics, text, video, regularisation, bases):
    """log p(t, v) / p(t) p(v), from the joint covariance of the fitted model, by NumPy's solver alone."""
    text_DD, video_DD = statistics.regularised(regularisation)
    found = statistics.fit(bases=bases, regularisation=regularisation, weight=1.0)
    cross = (text_DD @ found.text_map_DK * found.correlations_K) @ (found.video_map_DK.T @ video_DD)
    joint = np.block([[text_DD, cross], [cross.T, video_DD]])

    def log_density(rows, covariance):
        return (
            -0.5 * np.einsum("nd,nd->n", rows, np.linalg.solve(covariance, rows.T).T)
            - 0.5 * np.linalg.slogdet(covariance)[1]
        )

    t, v = unit(text) - statistics.mean_text_D, unit(video) - statistics.mean_video_D
    return np.array(
        [
            log_density(np.concatenate([np.tile(row, (len(v), 1)), v], axis=1), joint)
            - log_density(row[None], text_DD)
            - log_density(v, video_DD)
            for row in t
        ]
    )


def test_the_score_is_the_gaussian_likelihood_ratio(pairs):
    text, video = pairs
    statistics = PairStatistics.of(text, video)
    found = statistics.fit(bases=BASES, regularisation=0.03, weight=1.0).log_ratios(text[:20], video[:30])
    truth = gaussian_log_ratio(statistics, text[:20], video[:30], 0.03, BASES)
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_em_never_falls_and_reaches_the_closed_form(pairs):
    statistics = PairStatistics.of(*pairs)
    steps = list(expectation_maximization(statistics, bases=BASES, regularisation=0.03, iterations=500))
    likelihoods = [likelihood for likelihood, _, _ in steps]
    assert likelihoods[-1] > likelihoods[0] + 0.1
    assert np.diff(likelihoods).min() >= -1e-9
    closed = statistics.fit(bases=BASES, regularisation=0.03, weight=1.0)
    text_DD, video_DD = statistics.regularised(0.03)
    cross = (text_DD @ closed.text_map_DK * closed.correlations_K) @ (closed.video_map_DK.T @ video_DD)
    _, text_W, video_W = steps[-1]
    np.testing.assert_allclose(text_W @ video_W.T, cross, atol=1e-6)


def test_a_rotation_of_the_space_changes_nothing(pairs):
    text, video = pairs
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]
    plain, turned = PairedBases.fit(text, video), PairedBases.fit(text @ turn, video @ turn)
    scores = plain.rows(text[:40], "text") @ plain.rows(video[:40], "video").T
    again = turned.rows(text[:40] @ turn, "text") @ turned.rows(video[:40] @ turn, "video").T
    np.testing.assert_allclose(again, scores, atol=1e-8)
    assert turned.mixture == pytest.approx(plain.mixture)


def test_the_order_of_the_pairs_does_not_matter(pairs):
    text, video = pairs
    order = np.random.default_rng(4).permutation(len(text))
    plain, shuffled = PairedBases.fit(text, video), PairedBases.fit(text[order], video[order])
    scores = plain.rows(text[:40], "text") @ plain.rows(video[:40], "video").T
    again = shuffled.rows(text[:40], "text") @ shuffled.rows(video[:40], "video").T
    np.testing.assert_allclose(again, scores, atol=1e-8)


def test_spread_is_the_deviation_of_all_scores(pairs):
    text, video = unit(pairs[0][:50]), unit(pairs[1][:70])
    assert spread(text, video) == pytest.approx((text @ video.T).std())


def test_bases_survive_their_arrays(pairs, tmp_path):
    found = PairedBases.fit(*pairs, source="mine.jsonl")
    np.savez(tmp_path / "paired.npz", **found.to_arrays())
    with np.load(tmp_path / "paired.npz") as arrays:
        again = PairedBases.from_arrays(dict(arrays))
    np.testing.assert_array_equal(again.rows(pairs[0][:9], "text"), found.rows(pairs[0][:9], "text"))
    assert (again.pairs, again.source, again.weight) == (2000, "mine.jsonl", 0.2)


def test_sides_that_do_not_match_are_refused(pairs):
    with pytest.raises(ValueError, match=r"at least 2 pairs.*\(5, 8\), \(6, 8\)"):
        PairedBases.fit(pairs[0][:5], pairs[1][:6])
