"""Hub bases: EM climbs, the outcome is a property of the bank alone, and what is off changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numeric_support import score_tolerance

from benchmarks.method import METHODS, first_hits, halves
from model.emcl.hub import HubBases, e_step, spread_rows, unit

CLOSE = score_tolerance(24)


@pytest.fixture
def bank():
    """Queries around a few topics, unevenly many of each."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(12, 24))
    return (topics[rng.integers(0, 12, 300) ** 2 // 12] + 0.6 * rng.normal(size=(300, 24))).astype(np.float32)


@pytest.fixture
def items():
    return np.random.default_rng(1).normal(size=(50, 24)).astype(np.float32)


def rotation(dim, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def test_the_likelihood_never_falls(bank):
    rows = unit(bank)
    mu, log_pi, found = spread_rows(rows, 8), np.full(8, -np.log(8)), []
    for _ in range(30):
        sums, masses, likelihood = e_step(rows, mu, log_pi, 20.0)
        mu, log_pi = unit(sums), np.log(masses / len(rows))
        found.append(likelihood)
    assert found[-1] > found[0] + 0.01
    assert np.diff(found).min() >= -1e-12


def test_numbers_are_the_soft_maximum_over_the_bases(bank, items):
    bases = HubBases.fit(bank, bases=8)
    products = unit(items) @ bases.means_KD.T
    slow = np.log((np.exp(bases.log_weights_K) * np.exp(bases.kappa * products)).sum(axis=1)) / bases.kappa
    np.testing.assert_allclose(bases.numbers(items), slow, rtol=0, atol=CLOSE)
    assert np.exp(bases.log_weights_K).sum() == pytest.approx(1)


def test_a_rotation_of_the_space_changes_nothing(bank, items):
    turn = rotation(24)
    plain = HubBases.fit(bank)
    turned = HubBases.fit(bank @ turn).numbers(items @ turn)
    np.testing.assert_allclose(turned, plain.numbers(items), rtol=0, atol=plain.kappa * CLOSE)


def test_the_order_of_the_bank_does_not_matter(bank, items):
    shuffled = bank[np.random.default_rng(5).permutation(len(bank))]
    plain, found = HubBases.fit(bank), HubBases.fit(shuffled).numbers(items)
    np.testing.assert_allclose(found, plain.numbers(items), rtol=0, atol=plain.kappa * CLOSE)


def test_an_item_has_the_number_that_it_has_alone(bank, items):
    bases = HubBases.fit(bank)
    alone = np.concatenate([bases.numbers(items[n : n + 1]) for n in range(len(items))])
    np.testing.assert_allclose(bases.numbers(items), alone, rtol=0, atol=CLOSE)


def test_a_hub_has_the_largest_number(bank, items):
    hub = unit(bank).mean(axis=0)[None]
    assert HubBases.fit(bank).numbers(np.concatenate([items, hub])).argmax() == len(items)


def test_there_are_at_most_half_as_many_bases_as_queries(bank):
    assert len(HubBases.fit(bank[:20]).means_KD) == 10


def test_bases_survive_their_arrays(bank, items, tmp_path):
    bases = HubBases.fit(bank, source="300 captions")
    np.savez(tmp_path / "hub.npz", **bases.to_arrays())
    with np.load(tmp_path / "hub.npz") as arrays:
        again = HubBases.from_arrays(dict(arrays))
    np.testing.assert_array_equal(again.numbers(items), bases.numbers(items))
    assert (again.source, again.queries, again.strength) == ("300 captions", 300, 0.5)


@pytest.mark.parametrize("bad", [np.zeros((0, 4)), np.zeros((1, 4)), np.full((9, 4), np.nan)])
def test_a_bank_that_says_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="at least 2 finite rows"):
        HubBases.fit(bad)


def test_damaged_bases_say_what_to_do(bank):
    arrays = HubBases.fit(bank).to_arrays()
    del arrays["kappa"]
    with pytest.raises(ValueError, match=r"kappa.*emcl index rebuild"):
        HubBases.from_arrays(arrays)


FEATURES = Path(__file__).parents[4] / "shared" / "real-features" / "clip_vitb16_coco500.npy"


@pytest.fixture(scope="module")
def gains():
    """R@1 less that of the cosine, in points, both ways: mean over eight halves."""
    if not FEATURES.is_file():
        pytest.skip("the real features are not distributed with the project")
    found = {name: [] for name in ("hub bases", "paired + hub bases")}
    for _, split in halves(FEATURES, 4, seed=1):
        base = first_hits(METHODS["cosine"](split)).mean(axis=0)
        for name, differences in found.items():
            differences.append(100 * (first_hits(METHODS[name](split)).mean(axis=0) - base))
    return {name: np.mean(differences, axis=0) for name, differences in found.items()}


@pytest.mark.parametrize("name", ["hub bases", "paired + hub bases"])
def test_bases_gain_in_both_ways(gains, name):
    to_videos, to_texts = gains[name]
    assert to_videos >= 3
    assert to_texts >= 1
