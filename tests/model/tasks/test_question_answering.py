"""EMCL-QA against the released classes (``golden/rest/qa_step``): answers, loss, gradients, three optimiser steps."""

import pytest
import torch
from heads_support import golden_emcl, load_renamed, relative_error, tensors

from model.tasks.question_answering import QuestionAnswering, TokenPooling, accuracy, answer_loss
from model.train.optimiser import BertAdam

NAMES = {
    "transformerClip.": "blocks.",
    "frame_position_embeddings.": "positions.",
    "mean_proj.": "frame_projection.",
    "v_w.": "video_pooling.score.",
    "t_w.": "text_pooling.score.",
    "v_proj.": "video_projection.",
    "t_proj.": "text_projection.",
    "classifier.": "answer.",
}


# Bases that start at ±1 to 1e-6 are told apart by rounding: the released float32 is 2.3e-5 from float64 here.
STATE = 5e-5


def rename(theirs):
    return next((ours + theirs.removeprefix(old) for old, ours in NAMES.items() if theirs.startswith(old)), None)


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/qa_step"))


def net_of(arrays):
    net = QuestionAnswering(
        8,
        12,
        heads=int(arrays["heads"]),
        layers=int(arrays["layers"]),
        positions=10,
        projected=32,
        hidden=128,
        dropout=0.0,
        mask="after",
    )
    return load_renamed(net, arrays, "state/", rename)


def inputs_of(arrays):
    return (arrays["frames"], arrays["video_mask"].bool(), arrays["text_tokens"], arrays["text_mask"].bool())


def test_pooling_answers_and_accuracy(arrays):
    net = net_of(arrays).eval()
    with torch.no_grad():
        video, text = net.pool(*inputs_of(arrays))
        logits, _, _ = net(*inputs_of(arrays))
    torch.testing.assert_close(video, arrays["video_pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(text, arrays["text_pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, arrays["logits_eval"], atol=5e-5, rtol=0)
    found = accuracy(logits, arrays["labels"])
    assert found.of_all == pytest.approx((float(arrays["accuracy1"]), float(arrays["accuracy5"])))
    assert torch.equal(logits.topk(5, dim=1).indices, arrays["top5"])


def loss_of(net, arrays, emcl, scale):
    logits, video, text = net(*inputs_of(arrays))
    return answer_loss(logits, video, text, arrays["labels"], scale, emcl=emcl)


def test_loss_and_gradients(arrays):
    net, emcl = net_of(arrays).train(), golden_emcl({**arrays, "M_in": arrays["M_in"]}, "", 32, training=True)
    scale = arrays["state/clip.logit_scale"].clone().requires_grad_()
    loss = loss_of(net, arrays, emcl, scale)
    found = [float(part.detach()) for part in (loss.total, loss.answers, loss.contrast)]
    assert found == pytest.approx(
        [float(arrays[f"train/{name}"]) for name in ("loss", "loss_ce", "loss_nce")], abs=1e-4
    )
    loss.total.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    wanted = [key.removeprefix("train/grad/") for key in arrays if key.startswith("train/grad/")]
    checked = 0
    for theirs in wanted:
        expected = arrays[f"train/grad/{theirs}"]
        grad = scale.grad if theirs == "clip.logit_scale" else gradients[rename(theirs)]
        if expected.norm() > 1e-6:  # a bias that a softmax does not see has rounding for a gradient
            assert relative_error(grad, expected) < 1e-3, theirs
            checked += 1
    assert checked > 20
    torch.testing.assert_close(emcl.state, arrays["train/M_out"], atol=STATE, rtol=0)


def test_three_optimiser_steps(arrays):
    net, emcl = net_of(arrays).train(), golden_emcl(arrays, "", 32, training=True)
    scale = torch.nn.Parameter(arrays["state/clip.logit_scale"].clone())
    rate, decay = float(arrays["steps/lr"]), float(arrays["steps/weight_decay"])
    named = {rename(key.removeprefix("state/")): key for key in arrays if key.startswith("state/")}
    decayed, plain = [], []
    for name, parameter in net.named_parameters():
        (plain if "bias" in named[name] else decayed).append(parameter)
    groups = [
        {"params": decayed, "peak": rate, "weight_decay": decay},
        {"params": plain, "peak": rate, "weight_decay": 0.0},
        {"params": [scale], "peak": rate * float(arrays["steps/coef_lr"]), "weight_decay": decay},
    ]
    optimiser = BertAdam(groups, beta1=0.9, beta2=0.98, warmup_share=float(arrays["steps/warmup"]), steps=None)
    for group in optimiser.param_groups:
        group["steps"] = int(arrays["steps/t_total"])
    losses = []
    for _ in range(3):
        loss = loss_of(net, arrays, emcl, scale).total
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*net.parameters(), scale], 1.0)
        optimiser.step()
    assert losses == pytest.approx(arrays["steps/losses"].tolist(), abs=1e-4)
    ours = dict(net.named_parameters())
    for key in [key for key in arrays if key.startswith("steps/param/")]:
        theirs = key.removeprefix("steps/param/")
        found = scale if theirs == "clip.logit_scale" else ours[rename(theirs)]
        torch.testing.assert_close(found.detach(), arrays[key], atol=1e-5, rtol=0)
    torch.testing.assert_close(emcl.state, arrays["steps/M_out"], atol=STATE, rtol=0)


def test_padding_keeps_a_share_only_as_released():
    tokens = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    pooling = TokenPooling(8).eval()
    mask = torch.tensor([[True, True, False, False]])
    with torch.no_grad():
        torch.testing.assert_close(pooling(tokens, mask), pooling(tokens[:, :2], mask[:, :2]))
        pooling.mask = "after"
        assert (pooling(tokens, mask) - pooling(tokens[:, :2], mask[:, :2])).abs().max() > 1e-3


def test_a_question_without_an_answer_in_the_list_counts_as_wrong():
    logits = torch.eye(8)[:4]
    found = accuracy(logits, torch.tensor([0, 1, -1, 7]))
    assert (found.questions, found.answerable) == (4, 3)
    assert (found.of_all[0], found.of_answerable[0]) == pytest.approx((50.0, 200 / 3))
