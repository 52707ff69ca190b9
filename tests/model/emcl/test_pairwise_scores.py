"""Scores of all pairs without pooled vectors: equal to pooling them, whatever the blocks, padding and dtype."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numeric_support import assert_within_rounding

from model.config import PoolingConfig
from model.emcl import pairwise_scores
from model.emcl.pairwise_scores import score_all_pairs
from model.emcl.pooling import frame_weights, pool_videos


def random_pairs(texts=9, videos=7, frames=5, dim=16, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    text_TD = scale * torch.randn(texts, dim, generator=generator)
    features_VFD = scale * torch.randn(videos, frames, dim, generator=generator)
    lengths = torch.randint(1, frames + 1, (videos,), generator=generator)
    return text_TD, features_VFD, torch.arange(frames) < lengths[:, None]


def pooled_and_compared(text_TD, features_VFD, mask_VF, pooling):
    """The plain path: every pooled vector, in float64."""
    text_TD, features_VFD = text_TD.double(), features_VFD.double()
    logits_TVF = torch.einsum("td,vfd->tvf", text_TD, features_VFD)
    weights_TVF = frame_weights(logits_TVF, mask_VF[None].expand_as(logits_TVF), pooling)
    pooled_TVD = torch.einsum("tvf,vfd->tvd", weights_TVF, features_VFD)
    return torch.einsum("tvd,td->tv", F.normalize(pooled_TVD, dim=-1), F.normalize(text_TD, dim=-1))


def assert_equal_to_pooling(scores, *given):
    assert_within_rounding(scores, pooled_and_compared(*given), lambda: pooled_and_compared(*given))


@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("temperature", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("elements", [1, 60, 1 << 18])
def test_equal_to_pooling_every_pair(monkeypatch, mask, temperature, elements):
    monkeypatch.setattr(pairwise_scores, "CPU_BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(pairwise_scores, "TEXTS_AT_ONCE", 4)
    # With "after" padding takes its share of the mass, and the plain path has zero where that leaves less than 1e-12.
    given = random_pairs(scale=3.0 if mask == "before" else 0.5)
    pooling = PoolingConfig(mask=mask, temperature=temperature)
    assert_equal_to_pooling(score_all_pairs(*given, pooling), *given, pooling)


def test_with_a_unit_scale_equal_to_pooling_and_without_regard_to_size():
    text_TD, features_VFD, mask_VF = random_pairs()
    pooling = PoolingConfig(unit_scale=30.0)
    scores = score_all_pairs(text_TD, features_VFD, mask_VF, pooling)

    def plain():
        everything = features_VFD.double().expand(9, -1, -1, -1), mask_VF.expand(9, -1, -1)
        return F.cosine_similarity(pool_videos(text_TD.double(), *everything, pooling)[0], text_TD[:, None], dim=-1)

    assert_within_rounding(scores, plain(), plain)
    assert_within_rounding(score_all_pairs(9 * text_TD, 9 * features_VFD, mask_VF, pooling), scores, plain)


def test_equal_to_the_net_s_own_scores(tiny_encoder):
    text_TD, features_VFD, mask_VF = random_pairs(dim=tiny_encoder.dim)
    features_VFD = features_VFD * mask_VF[..., None]
    everything = features_VFD.expand(9, -1, -1, -1), mask_VF.expand(9, -1, -1)
    with torch.no_grad():
        alone = tiny_encoder.net.score_videos(text_TD, *everything, None, "none").scores_QN
    assert_equal_to_pooling(alone, text_TD, features_VFD, mask_VF, tiny_encoder.config.pooling)


def test_padding_changes_nothing():
    text_TD, features_VFD, mask_VF = random_pairs()
    wild = torch.where(mask_VF[..., None], features_VFD, torch.tensor(1e4))
    longer = F.pad(wild, (0, 0, 0, 2), value=-1e4)
    expected = score_all_pairs(text_TD, features_VFD, mask_VF, PoolingConfig())
    found = score_all_pairs(text_TD, longer, F.pad(mask_VF, (0, 2)), PoolingConfig())
    assert_within_rounding(
        found, expected, lambda: pooled_and_compared(text_TD, features_VFD, mask_VF, PoolingConfig())
    )


def test_zero_vectors_score_zero():
    text_TD, features_VFD, mask_VF = random_pairs()
    text_TD[2], features_VFD[1], mask_VF[3] = 0, 0, False
    scores = score_all_pairs(text_TD, features_VFD, mask_VF, PoolingConfig())
    assert torch.isfinite(scores).all()
    assert (scores[2] == 0).all()
    assert (scores[:, [1, 3]] == 0).all()
    assert (scores[0, [0, 2, 4, 5, 6]] != 0).all()


def test_half_precision_features_are_computed_in_single():
    text_TD, features_VFD, mask_VF = random_pairs()
    half = features_VFD.half()
    expected = score_all_pairs(text_TD, half.float(), mask_VF, PoolingConfig())
    np.testing.assert_array_equal(score_all_pairs(text_TD, half, mask_VF, PoolingConfig()), expected)


def test_an_array_that_is_given_is_filled():
    given = random_pairs()
    out = torch.full((9, 7), torch.nan)
    assert score_all_pairs(*given, PoolingConfig(), out=out) is out
    assert torch.isfinite(out).all()
    with pytest.raises(ValueError, match=r"shape \(9, 7\), got \(7, 9\)"):
        score_all_pairs(*given, PoolingConfig(), out=torch.empty(7, 9))


def test_shapes_that_do_not_fit_are_named():
    text_TD, features_VFD, mask_VF = random_pairs()
    with pytest.raises(ValueError, match=r"got \(9, 15\), \(7, 5, 16\) and \(7, 5\)"):
        score_all_pairs(text_TD[:, 1:], features_VFD, mask_VF, PoolingConfig())
    with pytest.raises(ValueError, match=r"and \(7, 4\)"):
        score_all_pairs(text_TD, features_VFD, mask_VF[:, 1:], PoolingConfig())


def test_no_tensor_grows_with_texts_times_videos_but_the_result(monkeypatch):
    """Of every block's inner products only a block's worth is alive: the largest product that is ever asked for."""
    monkeypatch.setattr(pairwise_scores, "CPU_BLOCK_ELEMENTS", 4096)
    monkeypatch.setattr(pairwise_scores, "TEXTS_AT_ONCE", 32)
    sizes = []
    plain = pairwise_scores.score_block

    def watched(unit_Dt, sharpness_t, features_vFD, gram_vFF, mask_vF, norms_vF):
        sizes.append(unit_Dt.shape[1] * mask_vF.numel())
        return plain(unit_Dt, sharpness_t, features_vFD, gram_vFF, mask_vF, norms_vF)

    monkeypatch.setattr(pairwise_scores, "score_block", watched)
    score_all_pairs(*random_pairs(texts=300, videos=200), PoolingConfig())
    assert max(sizes) <= 4096
    assert sum(sizes) == 300 * 200 * 5


@pytest.mark.gpu
def test_a_gpu_scores_as_the_cpu_does():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    text_TD, features_VFD, mask_VF = random_pairs(texts=700, videos=300, dim=64)
    found = score_all_pairs(text_TD.cuda(), features_VFD, mask_VF, PoolingConfig())
    assert_equal_to_pooling(found, text_TD, features_VFD, mask_VF, PoolingConfig())
