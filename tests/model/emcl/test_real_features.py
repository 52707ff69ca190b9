"""On real CLIP features, where they are beside the checkout: hub bases gain, and the default does not harm."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.method import METHODS, first_hits, halves

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
