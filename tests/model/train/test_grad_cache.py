"""Gradient caching and checkpointing give the gradients of the plain step; BatchNorm and dropout are not forgotten."""

import pytest
import torch
from numeric_support import score_tolerance
from torch import nn
from training_support import tiny, with_model

from model.config import EMCLConfig
from model.train.loop import Trainer, training_mode

REFERENCE = EMCLConfig.reference(num_bases=4, iterations=2).model_dump(mode="json")
RESNET = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {"context_length": 48, "vocab_size": 1014, "width": 32, "heads": 2, "layers": 1},
}


def gradients(config, tmp_path, prepare=lambda net: None):
    trainer = Trainer(config, tmp_path, device="cpu")
    training_mode(trainer.net, config)
    prepare(trainer.net)
    torch.manual_seed(3)
    trainer.stepper.gradients(0, trainer.data.batch(0), with_diagnostics=False)
    found = {name: p.grad for name, p in trainer.net.named_parameters() if p.grad is not None}
    return {**found, "state": trainer.net.emcl.state}, torch.get_rng_state()


def require_equal(found, expected):
    assert found.keys() == expected.keys()
    # There and back through three blocks of width 32, of which no channel has more than the norm of all gradients.
    norm = float(torch.stack([gradient.norm() for gradient in expected.values()]).norm())
    most = score_tolerance(32, products=2 * 4 * 3, condition=max(1.0, norm))
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= most, name


@pytest.mark.parametrize("emcl", [{"num_bases": 4, "iterations": 2, "beta": 0.3}, REFERENCE])
@pytest.mark.parametrize("settings", [{"chunk_size": 3}, {"chunk_size": 1, "gradient_checkpointing": True}])
def test_chunks_and_checkpointing_give_the_plain_gradients(tmp_path, emcl, settings):
    plain = with_model(tiny(), emcl=emcl)
    expected, _ = gradients(plain, tmp_path)
    found, _ = gradients(plain.model_copy(update=settings), tmp_path)
    require_equal(found, expected)


def test_checkpointing_runs_blocks_again(tmp_path):
    calls = []

    def count(net):
        net.temporal.blocks.resblocks[0].register_forward_pre_hook(lambda *_: calls.append("temporal"))
        net.clip.model.visual.transformer.resblocks[0].register_forward_pre_hook(lambda *_: calls.append("image"))
        net.clip.model.transformer.resblocks[0].register_forward_pre_hook(lambda *_: calls.append("text"))

    gradients(tiny(gradient_checkpointing=True), tmp_path, count)
    assert sorted(calls) == ["image", "image", "temporal", "temporal", "text", "text"]
    calls.clear()
    gradients(tiny(), tmp_path, count)
    assert sorted(calls) == ["image", "temporal", "text"]


def test_the_second_encoding_of_a_chunk_draws_what_the_first_did(tmp_path):
    """A dropout layer that remembers its masks: both passes over a chunk must use the same."""
    masks = []

    class Dropout(nn.Module):
        def forward(self, features):
            mask = torch.rand_like(features) < 0.7
            masks.append(mask)
            return features * mask

    def add(net):
        net.clip.model.ln_final = nn.Sequential(net.clip.model.ln_final, Dropout())

    _, state = gradients(tiny(chunk_size=3), tmp_path, add)
    assert len(masks) == 6  # 8 clips in 3 chunks, twice
    for first, second in zip(masks[:3], masks[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(masks[0], masks[1])
    torch.manual_seed(3)
    for mask in masks[:3]:
        torch.rand_like(mask, dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), state)  # the second pass leaves no trace


def test_batch_statistics_refuse_chunks(tmp_path):
    config = with_model(tiny(chunk_size=2), clip={"custom": RESNET})
    with pytest.raises(ValueError, match=r"BatchNorm layers.*chunk_size 2.*batch_norm: running"):
        Trainer(config, tmp_path, device="cpu")


def test_running_statistics_stand_still_and_are_exact_in_chunks(tmp_path):
    plain = with_model(tiny(batch_norm="running"), clip={"custom": RESNET})
    trainer = Trainer(plain, tmp_path, device="cpu")
    training_mode(trainer.net, plain)
    before = {name: buffer.clone() for name, buffer in trainer.net.clip.named_buffers()}
    trainer.step(0, trainer.data.batch(0))
    trainer.validate(_NoLog(), 1)  # which must not put the layers back into training mode
    trainer.step(1, trainer.data.batch(1))
    assert all(torch.equal(buffer, before[name]) for name, buffer in trainer.net.clip.named_buffers())
    expected, _ = gradients(plain, tmp_path)
    found, _ = gradients(plain.model_copy(update={"chunk_size": 3}), tmp_path)
    require_equal(found, expected)


class _NoLog:
    def write(self, step, **entry):
        pass


def test_what_a_model_has_no_layers_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="this model has none"):
        Trainer(tiny(batch_norm="running"), tmp_path, device="cpu")
    config = with_model(tiny(gradient_checkpointing=True), clip={"custom": RESNET})
    with pytest.raises(ValueError, match="the image tower is a ResNet"):
        Trainer(config, tmp_path, device="cpu")
