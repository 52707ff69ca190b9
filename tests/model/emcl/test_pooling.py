"""Frame pooling: padding, both mask orders, batched against looped."""

import pytest
import torch
import torch.nn.functional as F
from numeric_support import score_tolerance

from model.config import PoolingConfig
from model.emcl.pooling import frame_weights, mean_pool, pool_by_captions, pool_stored_videos, pool_videos


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_padding_changes_nothing_before_the_softmax():
    text, features = random(2, 8), random(2, 3, 5, 8, seed=1)
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    pooled, weights = pool_videos(text, features, mask, PoolingConfig())
    padded = torch.cat([features, torch.full((2, 3, 4, 8), 1e4)], dim=2)
    padded_mask = torch.cat([mask, torch.zeros(2, 3, 4, dtype=torch.bool)], dim=2)
    again, padded_weights = pool_videos(text, padded, padded_mask, PoolingConfig())
    torch.testing.assert_close(again, pooled)
    torch.testing.assert_close(padded_weights[..., :5], weights)
    assert padded_weights[..., 5:].abs().max() == 0


def test_reference_masking_leaves_mass_on_padding():
    logits = torch.zeros(1, 1, 4)
    mask = torch.tensor([[[True, True, False, False]]])
    assert frame_weights(logits, mask, PoolingConfig(mask="after")).sum() == pytest.approx(0.5)
    assert frame_weights(logits, mask, PoolingConfig(mask="before")).sum() == pytest.approx(1.0)


def test_candidate_without_frames_pools_to_zero_not_nan():
    mask = torch.tensor([[[False, False], [True, False]]])
    pooled, weights = pool_videos(random(1, 4), random(1, 2, 2, 4), mask, PoolingConfig())
    assert pooled[0, 0].abs().max() == 0
    assert weights[0, 0].sum() == 0
    assert weights[0, 1].sum() == pytest.approx(1.0)


def test_video_and_caption_directions_pool_alike():
    """One text and one video pool to the same vector whichever of them is the query."""
    texts, features = random(3, 8), random(1, 5, 8, seed=1)
    mask = torch.tensor([[True, True, True, True, False]])
    by_caption, _ = pool_by_captions(texts[None], features, mask, PoolingConfig())
    for row, text in enumerate(texts):
        by_text, _ = pool_videos(text[None], features[:, None], mask[:, None], PoolingConfig())
        torch.testing.assert_close(by_caption[0, row], by_text[0, 0])


def test_mean_pool_is_pooling_at_infinite_temperature():
    text, features = random(1, 8), random(1, 1, 5, 8, seed=1)
    mask = torch.tensor([[[True, True, True, False, False]]])
    pooled, _ = pool_videos(text, features, mask, PoolingConfig(temperature=1e9))
    torch.testing.assert_close(pooled[0], mean_pool(features[0], mask[0]))


def test_the_size_of_features_changes_nothing_with_a_unit_scale():
    """For models whose pooling was not trained: a constant times all features leaves every weight as it is."""
    generator = torch.Generator().manual_seed(3)
    text, features = torch.randn(2, 8, generator=generator), torch.randn(2, 5, 4, 8, generator=generator)
    mask = torch.ones(2, 5, 4, dtype=torch.bool)
    mask[:, 0, 2:] = False
    config = PoolingConfig(unit_scale=30.0)
    pooled, weights = pool_videos(text, features, mask, config)
    cosines = F.normalize(features, dim=-1) @ F.normalize(text, dim=-1)[:, None, :, None]
    expected = torch.softmax((30.0 * cosines[..., 0]).masked_fill(~mask, -torch.inf), dim=-1)
    torch.testing.assert_close(weights, expected)
    close = score_tolerance(8, condition=30)  # a softmax errs by what its logits do
    for factor in (0.01, 7.0, 500.0):
        larger, same = pool_videos(factor * text, factor * features, mask, config)
        size = factor * float(features.norm(dim=-1).max())
        torch.testing.assert_close(same, weights, rtol=0, atol=close)
        torch.testing.assert_close(larger, factor * pooled, rtol=0, atol=close * size)
        stored, stored_weights = pool_stored_videos(factor * text, factor * features, mask, config)
        torch.testing.assert_close(stored_weights, weights, rtol=0, atol=close)
        torch.testing.assert_close(stored, larger, rtol=0, atol=close * size)
        captions = factor * text[:, None]
        _, by_caption = pool_by_captions(captions, factor * features[:, 1], mask[:, 1], config)
        torch.testing.assert_close(by_caption[:, 0], weights[:, 1], rtol=0, atol=close)
    _, raw = pool_videos(text, features, mask, PoolingConfig())
    _, raw_of_larger = pool_videos(7 * text, 7 * features, mask, PoolingConfig())
    assert not torch.allclose(raw, raw_of_larger, atol=0.1)
