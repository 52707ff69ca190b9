"""The captioner against the released classes (``golden/rest/caption_model``): logits, loss, gradients, beam search."""

import pytest
import torch
from heads_support import relative_error, tensors

from model.tasks.caption_model import END, NEVER_WORDS, Captioner, beam_search, caption_loss


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/caption_model"))


def places():
    """Our parameter to those of the released code that it is made of."""
    found = {f"encoder.{n}.{part}": [f"encoder.Encoder_I.{n}.{part}"] for n in (0, 1) for part in ("weight", "bias")}
    found["words.weight"] = ["decoder.embedding.word_embeddings.weight"]
    found["positions.weight"] = ["decoder.embedding.position_embeddings.weight"]
    found["output.weight"] = ["cls_head.tgt_word_prj.weight"]
    layer = "decoder.layers.0"
    for part in ("weight", "bias"):
        found[f"norm.{part}"] = [f"decoder.embedding.LayerNorm.{part}"]
        for ours, theirs in (("self_attn", "intra_attention"), ("multihead_attn", "inter_attention")):
            packed = [f"{layer}.{theirs}.SDPA.{name}.{part}" for name in ("query", "key", "value")]
            found[f"layer.{ours}.in_proj_{part}"] = packed
            found[f"layer.{ours}.out_proj.{part}"] = [f"{layer}.{theirs}.dense.{part}"]
        found[f"layer.norm1.{part}"] = [f"{layer}.intra_attention.LayerNorm.{part}"]
        found[f"layer.norm2.{part}"] = [f"{layer}.inter_attention.LayerNorm.{part}"]
        found[f"layer.norm3.{part}"] = [f"{layer}.ffn.LayerNorm.{part}"]
        for n in (1, 2):
            found[f"layer.linear{n}.{part}"] = [f"{layer}.ffn.dense{n}.{part}"]
    return found


def net_of(arrays):
    net = Captioner(12, 20, 16, heads=int(arrays["heads"]), inner=32, length=9, dropout=0.0, attention_dropout=0.0)
    net.load_state_dict(
        {ours: torch.cat([arrays[f"state/{part}"] for part in theirs]) for ours, theirs in places().items()}
    )
    return net


def test_logits_loss_and_gradients(arrays):
    net = net_of(arrays).train()
    hidden = net.encode(arrays["feats"])
    torch.testing.assert_close(hidden, arrays["encoder_hidden"], atol=1e-5, rtol=1e-5)
    logits = net(arrays["feats"], arrays["input_ids"].long())
    torch.testing.assert_close(logits, arrays["logits"], atol=1e-4, rtol=0)
    loss = caption_loss(logits, arrays["labels"].long())
    assert float(loss.detach()) == pytest.approx(float(arrays["loss"]), abs=1e-3)
    loss.backward()
    gradients = dict(net.named_parameters())
    checked = 0
    for ours, theirs in places().items():
        expected = torch.cat([arrays[f"grad/{part}"] for part in theirs])
        if expected.norm() > 1e-5:
            assert relative_error(gradients[ours].grad, expected) < 1e-3, ours
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("name", ["beam1_alpha1.0", "beam3_alpha1.0", "beam3_alpha0.5", "beam5_alpha1.3"])
def test_beam_search(arrays, name):
    size, alpha = name.removeprefix("beam").split("_alpha")
    found = beam_search(net_of(arrays).eval(), arrays["feats"], size=int(size), alpha=float(alpha), released=True)
    expected = [[word for word in row if word >= 0] for row in arrays[f"{name}/ids"].tolist()]
    assert [list(caption.ids) for caption in found] == expected
    assert [caption.score for caption in found] == pytest.approx(arrays[f"{name}/scores"].tolist(), abs=1e-4)


def test_the_first_word_follows_the_beginning_but_for_the_released_search(arrays):
    net = net_of(arrays).eval()
    with torch.no_grad():
        after = net(arrays["feats"], torch.full((3, 1), 2))[:, 0].log_softmax(dim=-1)
    ours, theirs = (beam_search(net, arrays["feats"], size=1, released=released) for released in (False, True))
    allowed = after.index_fill(1, torch.tensor(NEVER_WORDS), -torch.inf)
    assert [caption.ids[0] for caption in ours] == allowed.argmax(dim=1).tolist()
    assert [caption.score for caption in ours] != [caption.score for caption in theirs]


def test_words_that_are_none_come_only_where_nothing_is_forbidden(arrays):
    net = net_of(arrays).eval()
    with torch.no_grad():
        net.output.weight[1] += 3 * net.output.weight.abs().max() * torch.sign(torch.randn(16))
    captions = beam_search(net, arrays["feats"])
    assert not {word for caption in captions for word in caption.ids} & set(NEVER_WORDS)
    assert all(END in caption.ids or len(caption.ids) == 8 for caption in captions)


def test_more_words_than_positions_are_refused(arrays):
    with pytest.raises(ValueError, match="9 positions, got 10"):
        net_of(arrays)(arrays["feats"], torch.full((3, 10), 2))
