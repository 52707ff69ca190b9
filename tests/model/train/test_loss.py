"""The contrastive loss against a slow one, and what EMCL does in it."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from numeric_support import score_tolerance, unit_roundoff

from model.config import ClipConfig, EMCLConfig, ModelConfig, SamplingConfig, TemporalConfig, TokenizerConfig
from model.data.batches import Batch
from model.heads.losses import known_pairs, symmetric_info_nce
from model.net import build_net
from model.train.tasks import contrastive_loss

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
    loss = symmetric_info_nce(torch.eye(8) * 2 - 1, torch.tensor(math.log(100)))
    assert float(loss) < 100 * 2 * unit_roundoff(np.float32)


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
    assert contrastive_loss(net, text, longer, mask, joint_emcl=True).item() == pytest.approx(
        plain.item(), abs=score_tolerance(32, products=2 * 2 + 3, condition=float(net.clip.logit_scale.detach().exp()))
    )


# Items: 0 and 1 are one video; 1 and 2 have one caption; 3 stands alone; 4 repeats 3's caption in other letters.
VIDEOS = ["a", "a", "b", "c", "d"]
CAPTIONS = ["one", "two", "two", "A red  Circle", "a red circle "]


def batch_of(videos, captions):
    frames = np.zeros((len(videos), 1, 2, 2, 3), np.uint8)
    mask = np.ones((len(videos), 1), bool)
    return Batch(frames_BFHWC=frames, mask_BF=mask, captions=list(captions), clip_ids=list(videos))


def identities():
    return torch.from_numpy(batch_of(VIDEOS, CAPTIONS).identities)


def slow_loss(similarity, scale):
    """Row by row: a text's negatives are the videos that no item of the batch pairs with that text."""
    texts = [" ".join(text.lower().split()) for text in CAPTIONS]
    facts = set(zip(texts, VIDEOS, strict=True))
    logits = similarity * math.exp(scale)
    losses = []
    for i in range(5):
        row = [j for j in range(5) if j == i or (texts[i], VIDEOS[j]) not in facts]
        column = [j for j in range(5) if j == i or (texts[j], VIDEOS[i]) not in facts]
        losses.append(torch.logsumexp(logits[i, row], 0) - logits[i, i])
        losses.append(torch.logsumexp(logits[column, i], 0) - logits[i, i])
    return torch.stack(losses).mean()


def test_known_pairs_are_left_out_as_in_the_slow_computation():
    generator = torch.Generator().manual_seed(5)
    fast = torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    slow = fast.detach().clone().requires_grad_()
    loss = symmetric_info_nce(fast, torch.tensor(1.2, dtype=torch.float64), known_pairs(identities()))
    expected = slow_loss(slow, 1.2)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert symmetric_info_nce(fast, torch.tensor(1.2, dtype=torch.float64)) > loss + 0.1
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss, fast), torch.autograd.grad(expected, slow)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)
    assert gradient[0, 1] == gradient[1, 0] == gradient[3, 4] == 0
    assert gradient[0, 3] > 0


def test_known_pairs_go_through_a_third_item():
    known = known_pairs(identities())
    assert known.diagonal().all()
    # Video a has the caption "two", which is also text 2; text 0 describes a alone.
    assert known[2, 0]
    assert not known[0, 2]
    assert known.int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
    ]


def test_a_batch_of_one_video_has_no_negatives_and_no_loss():
    batch = batch_of(["a"] * 3, ["x", "y", "z"])
    similarity = torch.randn(3, 3, requires_grad=True)
    loss = symmetric_info_nce(similarity, torch.tensor(4.6), known_pairs(torch.from_numpy(batch.identities)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(similarity.grad, torch.zeros(3, 3))


def test_distinct_items_have_the_same_loss_with_and_without_their_identities():
    net = tiny_net().eval()
    distinct = torch.from_numpy(batch_of("abcde", "vwxyz").identities)
    losses = [
        contrastive_loss(net, *features(), joint_emcl=False, identities_B2=identities_B2)
        for identities_B2 in (None, distinct, identities())
    ]
    assert torch.equal(losses[0], losses[1])
    assert losses[2] < losses[0]


def test_identities_are_the_same_in_every_process():
    code = (
        "import numpy as np; from model.data.batches import Batch; print(Batch(frames_BFHWC=np.zeros((1, 1, 2, 2, 3), "
        "np.uint8), mask_BF=np.ones((1, 1), bool), captions=['A  cat'], clip_ids=['video7']).identities.tolist())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert results == {str(batch_of(["video7"], ["a cat"]).identities.tolist())}


def test_identities_of_file_names_that_are_not_utf8():
    first, second = batch_of(["\udcff.mp4", "\udcfe.mp4"], ["x", "x"]).identities
    assert first[0] != second[0]
    assert first[1] == second[1]
    assert batch_of([], []).identities.shape == (0, 2)
