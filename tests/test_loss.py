"""The contrastive loss against a slow one, and what EMCL does in it."""

import math

import pytest
import torch

from model.config import ClipConfig, EMCLConfig, ModelConfig, SamplingConfig, TemporalConfig, TokenizerConfig
from model.loss import contrastive_loss, symmetric_info_nce
from model.net import build_net

TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 514, "width": 32, "heads": 2, "layers": 1},
}


def tiny_net():
    torch.manual_seed(0)
    config = ModelConfig(
        clip=ClipConfig(custom=TOWERS),
        tokenizer=TokenizerConfig(max_words=16, merges=0),
        temporal=TemporalConfig(layers=1, max_positions=8),
        emcl=EMCLConfig(num_bases=4, iterations=2, beta=0.3),
        sampling=SamplingConfig(max_frames=4),
    )
    return build_net(config).train()


def features():
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(5, 32, generator=generator, requires_grad=True)
    frames = torch.randn(5, 4, 32, generator=generator, requires_grad=True)
    return text, frames, torch.ones(5, 4, dtype=torch.bool)


def test_info_nce_equals_the_sum_written_out():
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scale = torch.tensor(1.7, dtype=torch.float64)
    logits = (similarity * math.exp(1.7)).tolist()
    total = 0.0
    for i in range(6):
        row = sum(math.exp(value) for value in logits[i])
        column = sum(math.exp(logits[j][i]) for j in range(6))
        total += math.log(row) + math.log(column) - 2 * logits[i][i]
    assert float(symmetric_info_nce(similarity, scale)) == pytest.approx(total / 12, rel=1e-12)


def test_info_nce_rejects_a_matrix_that_is_not_square():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        symmetric_info_nce(torch.zeros(2, 3), torch.tensor(0.0))


def test_a_perfect_batch_has_no_loss():
    assert float(symmetric_info_nce(torch.eye(8) * 2 - 1, torch.tensor(math.log(100)))) < 1e-6


def test_the_joint_pass_moves_the_state_once_and_lets_gradients_through():
    net = tiny_net()
    before = net.emcl.state.clone()
    text, frames, mask = features()
    contrastive_loss(net, text, frames, mask, joint_emcl=True).backward()
    assert not torch.equal(net.emcl.state, before)
    assert text.grad.norm() > 0
    assert frames.grad.norm() > 0
    assert net.clip.logit_scale.grad is not None


def test_without_the_joint_pass_the_state_rests():
    net = tiny_net()
    before = net.emcl.state.clone()
    contrastive_loss(net, *features(), joint_emcl=False).backward()
    assert torch.equal(net.emcl.state, before)


def test_padded_frames_change_nothing():
    net = tiny_net().eval()
    text, frames, mask = (tensor.detach() for tensor in features())
    plain = contrastive_loss(net, text, frames, mask, joint_emcl=True)
    longer = torch.cat([frames, torch.full((5, 2, 32), 9.0)], dim=1)
    mask = torch.cat([mask, torch.zeros(5, 2, dtype=torch.bool)], dim=1)
    assert contrastive_loss(net, text, longer, mask, joint_emcl=True).item() == pytest.approx(plain.item(), abs=1e-6)
