"""EMCL-Net in reference mode: loss and gradients of a training step equal those of the released code."""

import pytest
import torch
from heads_support import golden_architecture, reference_name
from numeric_support import assert_equal_towers

from model.net import EMCLNet
from model.train.config import OptimiserConfig
from model.train.optimiser import build_optimiser
from model.train.tasks import contrastive_loss


@pytest.fixture
def step(golden) -> tuple[EMCLNet, dict[str, torch.Tensor], torch.Tensor]:
    """The net in training mode, the golden arrays, and the loss, from which gradients have been computed."""
    arrays = {key: torch.from_numpy(value) for key, value in golden("emclnet_forward").items() if key != "meta"}
    net = golden_architecture()
    state = net.state_dict()
    for name, value in state.items():
        state[name] = arrays["M_in"] if name == "emcl.state" else arrays["state/" + reference_name(name)].view_as(value)
    net.load_state_dict(state)
    build_optimiser(net.train(), OptimiserConfig(kind="bert-adam", train_patches=False))  # which freezes conv1
    mask = arrays["video_mask"].bool()
    text = net.encode_text(arrays["text_ids"].long(), arrays["text_mask"].bool())
    loss = contrastive_loss(net, text, net.encode_video(arrays["video"], mask), mask, joint_emcl=True)
    loss.backward()
    return net, arrays, loss.detach()


def test_loss_equals_the_golden_one(step):
    net, arrays, loss = step
    # Features after four blocks of width 64, as in tests/model/test_net.py; the loss is of cosines times the scale.
    scale = float(net.clip.logit_scale.detach().exp())
    assert_equal_towers(loss / scale, arrays["loss"] / scale, width=64, blocks=5)
    assert_equal_towers(net.emcl.state, arrays["M_after_train"], width=64, blocks=5)


def test_every_given_gradient_equals_the_golden_one(step):
    net, arrays, _ = step
    gradients = {reference_name(name): parameter.grad for name, parameter in net.named_parameters()}
    wanted = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    assert len(wanted) == 14
    for name in wanted:
        expected = arrays[f"grad/{name}"]
        error = (gradients[name].view_as(expected) - expected).norm() / expected.norm()
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


def test_norm_of_all_gradients_equals_the_golden_one(step):
    net, arrays, _ = step
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert float(norm) == pytest.approx(float(arrays["total_grad_norm"]), rel=1e-3)
