"""DRL's token interaction and channel decorrelation against the released classes (``golden/rest/drl_wti``)."""

import pytest
import torch
import torch.nn.functional as F
from heads_support import golden_emcl, load_renamed, relative_error, tensors

from model.heads.tokens import Decorrelation, TokenBatch, TokensHead, TokenWeights, channel_decorrelation

RELEASED = TokensHead(mask="multiply")


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/drl_wti"))


def weigher(arrays, side):
    prefix = f"state/{side}_weight_fc."
    return load_renamed(TokenWeights(24), arrays, prefix, lambda name: f"score.{name}")


def batch_of(arrays, text, video, *, weighted=True):
    text_mask, video_mask = arrays["text_mask"].bool(), arrays["video_mask"].bool()
    weights = {}
    if weighted:
        weights["text_weight_TL"] = weigher(arrays, "text")(text, text_mask)
        weights["video_weight_VF"] = weigher(arrays, "video")(video, video_mask)
    return TokenBatch(
        text_TLD=F.normalize(text, dim=-1),
        video_VFD=F.normalize(video, dim=-1),
        text_mask_TL=text_mask,
        video_mask_VF=video_mask,
        **weights,
    )


def test_weights_and_both_interactions(arrays):
    with torch.no_grad():
        batch = batch_of(arrays, arrays["text"], arrays["video"])
        torch.testing.assert_close(batch.text_weight_TL, arrays["wti/text_weight"], atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.video_weight_VF, arrays["wti/video_weight"], atol=1e-5, rtol=0)
        torch.testing.assert_close(RELEASED.similarity(batch), arrays["wti/eval_logits"], atol=1e-5, rtol=0)
        plain = batch_of(arrays, arrays["text"], arrays["video"], weighted=False)
        torch.testing.assert_close(RELEASED.similarity(plain), arrays["ti/eval_logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [0, 2, 3])
@pytest.mark.parametrize("settings", ["script", "cli"])
def test_loss_with_channel_decorrelation(arrays, kind, settings):
    name = f"train_cdcr{kind}_{settings}"
    if f"{name}/loss" not in arrays:
        assert name == "train_cdcr0_cli", name
        return
    text, video = (arrays[key].clone().requires_grad_() for key in ("text", "video"))
    batch, scale = batch_of(arrays, text, video), arrays["state/clip.logit_scale"]
    similarity = RELEASED.similarity(batch)
    torch.testing.assert_close(similarity * scale.exp(), arrays[f"{name}/logits"], atol=5e-5, rtol=0)
    loss = RELEASED.loss(similarity, scale)
    assert float(loss.detach()) == pytest.approx(float(arrays[f"{name}/sim_loss"]), abs=1e-5)
    if kind:
        on, off = (0.14, 0.0) if settings == "script" else (1.0, 0.06)
        chosen = Decorrelation(kind=kind, on_diagonal=on, off_diagonal=off)
        extra = channel_decorrelation(batch, chosen, mask="multiply")
        assert float(extra.detach()) == pytest.approx(float(arrays[f"{name}/cdcr"]), rel=1e-5)
        loss = loss + chosen.weight * extra
    assert float(loss.detach()) == pytest.approx(float(arrays[f"{name}/loss"]), abs=1e-5)
    loss.backward()
    assert relative_error(text.grad, arrays[f"{name}/grad_text"]) < 1e-3
    assert relative_error(video.grad, arrays[f"{name}/grad_video"]) < 1e-3


def test_emcl_on_words_and_frames(arrays):
    with torch.no_grad():
        batch = batch_of(arrays, arrays["text"], arrays["video"])
        corrected = RELEASED.corrected(batch, golden_emcl(arrays, "emcl/", 24))
        torch.testing.assert_close(RELEASED.similarity(corrected), arrays["emcl_eval/logits"], atol=1e-5, rtol=0)


def test_joint_emcl_with_decorrelation_of_the_corrected_tokens(arrays):
    text, video = (arrays[key].clone().requires_grad_() for key in ("text", "video"))
    batch, scale = batch_of(arrays, text, video), arrays["state/clip.logit_scale"]
    emcl = golden_emcl(arrays, "emcl/", 24, training=True)
    corrected = RELEASED.corrected(batch, emcl)
    similarity = RELEASED.similarity(corrected)
    torch.testing.assert_close(similarity * scale.exp(), arrays["emcl_train/logits"], atol=5e-5, rtol=0)
    extra = channel_decorrelation(corrected, Decorrelation(), mask="multiply")
    # Under the released masks 5 of the 40 words have a padded frame as their best, so this value depends on what stands
    # in the padding of corrected frames (zeros here), which no similarity does.
    assert float(extra.detach()) == pytest.approx(float(arrays["emcl_train/cdcr"]), rel=3e-3)
    loss = RELEASED.loss(similarity, scale) + 1e-3 * extra
    assert float(loss.detach()) == pytest.approx(float(arrays["emcl_train/loss"]), abs=1e-5)
    loss.backward()
    assert relative_error(text.grad, arrays["emcl_train/grad_text"]) < 1e-3
    assert relative_error(video.grad, arrays["emcl_train/grad_video"]) < 1e-3
    torch.testing.assert_close(emcl.state, arrays["emcl_train/M_out"], atol=1e-6, rtol=0)


def test_padding_wins_only_as_released():
    """Every real pair is opposed (-1), so that the released rule lets padding, 0, win."""
    text = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    video = torch.tensor([[[-1.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, False]])
    batch = TokenBatch(text_TLD=text, video_VFD=video, text_mask_TL=mask, video_mask_VF=mask)
    assert float(TokensHead(mask="multiply").similarity(batch)) == 0.0
    assert float(TokensHead().similarity(batch)) == -1.0


def test_more_padding_changes_nothing(arrays):
    head = TokensHead()
    with torch.no_grad():
        batch = batch_of(arrays, arrays["text"], arrays["video"])
        emcl = golden_emcl(arrays, "emcl/", 24)
        expected = head.similarity(head.corrected(batch, emcl))
        padded = TokenBatch(
            text_TLD=F.pad(batch.text_TLD, (0, 0, 0, 3), value=7.0),
            text_mask_TL=F.pad(batch.text_mask_TL, (0, 3)),
            text_weight_TL=F.pad(batch.text_weight_TL, (0, 3)),
            video_VFD=F.pad(batch.video_VFD, (0, 0, 0, 2), value=7.0),
            video_mask_VF=F.pad(batch.video_mask_VF, (0, 2)),
            video_weight_VF=F.pad(batch.video_weight_VF, (0, 2)),
        )
        torch.testing.assert_close(head.similarity(head.corrected(padded, emcl)), expected, atol=1e-6, rtol=0)


def test_a_constant_channel_is_no_nan(arrays):
    text, video = arrays["text"].clone(), arrays["video"].clone()
    batch = batch_of(arrays, text, video)
    flat = TokenBatch(
        text_TLD=batch.text_TLD.detach().index_fill(2, torch.tensor([3]), 0.5),
        video_VFD=batch.video_VFD.detach(),
        text_mask_TL=batch.text_mask_TL,
        video_mask_VF=batch.video_mask_VF,
    )
    assert torch.isnan(channel_decorrelation(flat, Decorrelation(), mask="multiply"))
    assert torch.isfinite(channel_decorrelation(flat, Decorrelation()))


def test_one_token_of_each_is_drawn_from_the_generator(arrays):
    batch = batch_of(arrays, arrays["text"], arrays["video"])
    chosen = Decorrelation(kind=1)
    values = [
        float(channel_decorrelation(batch, chosen, generator=torch.Generator().manual_seed(seed)).detach())
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]
