"""Scores of all pairs without pooled vectors: equal to pooling them, whatever the blocks, padding and dtype."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.parametrize("mask", ["before", "after"])
@pytest.mark.parametrize("temperature", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("elements", [1, 60, 1 << 18])
def test_equal_to_pooling_every_pair(monkeypatch, mask, temperature, elements):
    monkeypatch.setattr(pairwise_scores, "CPU_BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(pairwise_scores, "TEXTS_AT_ONCE", 4)
    # With "after" padding takes its share of the mass, and the plain path has zero where that leaves less than 1e-12.
    given = random_pairs(scale=3.0 if mask == "before" else 0.5)
    pooling = PoolingConfig(mask=mask, temperature=temperature)
    np.testing.assert_allclose(score_all_pairs(*given, pooling), pooled_and_compared(*given, pooling), atol=1e-5)


def test_with_a_unit_scale_equal_to_pooling_and_without_regard_to_size():
    text_TD, features_VFD, mask_VF = random_pairs()
    pooling = PoolingConfig(unit_scale=30.0)
    scores = score_all_pairs(text_TD, features_VFD, mask_VF, pooling)
    pooled, _ = pool_videos(text_TD, features_VFD[None].expand(9, -1, -1, -1), mask_VF[None].expand(9, -1, -1), pooling)
    plain = F.cosine_similarity(pooled, text_TD[:, None], dim=-1)
    np.testing.assert_allclose(scores, plain, atol=1e-5)
    np.testing.assert_allclose(score_all_pairs(9 * text_TD, 9 * features_VFD, mask_VF, pooling), scores, atol=1e-5)


def test_equal_to_the_net_s_own_scores(tiny_encoder):
    text_TD, features_VFD, mask_VF = random_pairs(dim=tiny_encoder.dim)
    features_VFD = features_VFD * mask_VF[..., None]
    with torch.no_grad():
        for t, row in enumerate(score_all_pairs(text_TD, features_VFD, mask_VF, tiny_encoder.config.pooling)):
            alone = tiny_encoder.net.score_videos(text_TD[t : t + 1], features_VFD[None], mask_VF[None], None, "none")
            np.testing.assert_allclose(row, alone.scores_QN[0], atol=1e-5)


def test_padding_changes_nothing():
    text_TD, features_VFD, mask_VF = random_pairs()
    wild = torch.where(mask_VF[..., None], features_VFD, torch.tensor(1e4))
    longer = F.pad(wild, (0, 0, 0, 2), value=-1e4)
    expected = score_all_pairs(text_TD, features_VFD, mask_VF, PoolingConfig())
    found = score_all_pairs(text_TD, longer, F.pad(mask_VF, (0, 2)), PoolingConfig())
    np.testing.assert_allclose(found, expected, atol=1e-6)


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
    plain = pairwise_scores._score_block

    def watched(unit_Dt, sharpness_t, features_vFD, gram_vFF, mask_vF, norms_vF):
        sizes.append(unit_Dt.shape[1] * mask_vF.numel())
        return plain(unit_Dt, sharpness_t, features_vFD, gram_vFF, mask_vF, norms_vF)

    monkeypatch.setattr(pairwise_scores, "_score_block", watched)
    score_all_pairs(*random_pairs(texts=300, videos=200), PoolingConfig())
    assert max(sizes) <= 4096
    assert sum(sizes) == 300 * 200 * 5


@pytest.mark.gpu
def test_a_gpu_scores_as_the_cpu_does():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    text_TD, features_VFD, mask_VF = random_pairs(texts=700, videos=300, dim=64)
    expected = score_all_pairs(text_TD, features_VFD, mask_VF, PoolingConfig())
    found = score_all_pairs(text_TD.cuda(), features_VFD, mask_VF, PoolingConfig())
    np.testing.assert_allclose(found, expected, atol=1e-5)
