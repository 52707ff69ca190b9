"""Weights laid out for oneDNN: the same features, and left as they are where oneDNN cannot use them here."""

import numpy as np
import pytest
import torch
from numeric_support import assert_equal_towers

from model.clip.tokenizer import BUCKET_TOKENS, rounded_up
from model.encoder import load_encoder
from model.net import build_net
from model.runtime.packed import can_pack, pack, padded_rows

TOKENS = torch.arange(40).reshape(2, 20)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


@pytest.fixture
def towers(tiny_config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_net(tiny_config).eval().clip


SIZE = {"width": 32, "blocks": 2}  # of the tiny model's text tower; its image tower has one block


# Products in bf16 are summed in float32 and rounded once.
@pytest.mark.parametrize(("precision", "dtype", "terms"), [("fp32", torch.float32, 32), ("bf16", torch.bfloat16, 1)])
def test_packed_towers_compute_the_same(towers, precision, dtype, terms):
    towers.set_precision(precision)
    if not can_pack(towers):
        pytest.skip("oneDNN cannot do this here")
    with torch.inference_mode():
        expected = towers.encode_text(TOKENS, MASK)
        pack(towers)
        assert_equal_towers(towers.encode_text(TOKENS, MASK), expected, width=terms, blocks=2, dtype=dtype)


@pytest.mark.parametrize("texts", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("length", [4, 12, 19, 32])
def test_batches_of_every_size_compute_the_same(towers, texts, length):
    if not can_pack(towers):
        pytest.skip("oneDNN cannot do this here")
    ids = torch.randint(1, 500, (texts, length), generator=torch.Generator().manual_seed(texts))
    mask = torch.ones_like(ids, dtype=torch.bool)
    images = torch.rand(texts, 3, *towers.preprocess.shape[:2], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = towers.encode_text(ids, mask), towers.encode_image(images)
        pack(towers)
        for found, wanted in zip((towers.encode_text(ids, mask), towers.encode_image(images)), expected, strict=True):
            assert_equal_towers(found, wanted, **SIZE)


def test_a_few_numbers_of_rows_stand_for_all():
    counts = range(1, 32 * 77 + 1)
    padded = [padded_rows(count) for count in counts]
    assert all(0 <= more - count <= max(3, count / 8) for count, more in zip(counts, padded, strict=True))
    assert padded == sorted(padded)
    assert all(padded_rows(more) == more for more in padded)
    assert len(set(padded)) < 60


def test_onednn_meets_few_shapes(tiny_encoder, tiny_checkpoint, monkeypatch):
    """Each costs memory that is never given back, and a compilation that some search waits for."""
    if not can_pack(tiny_encoder.net.clip):
        pytest.skip("oneDNN cannot do this here")
    encoder = load_encoder(str(tiny_checkpoint), device="cpu", runtime="torch")
    seen = set()
    multiply = torch.ops.mkldnn._linear_pointwise

    def counting(rows, *others):
        seen.add(rows.numel() // rows.shape[-1])
        return multiply(rows, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counting, raising=False)
    for texts in range(1, 33):
        for words in range(1, encoder.config.tokenizer.max_words, 2):
            encoder.encode_texts(["red " * words] * texts)
    assert seen, "the weights of a loaded model are packed"
    assert seen <= {padded_rows(count) for count in range(1, 32 * 77 + 1)}
    assert min(seen) >= BUCKET_TOKENS
    assert len(seen) < 60


def test_a_text_as_long_as_the_tower_is_not_padded_beyond_it(tiny_encoder, monkeypatch):
    expected = tiny_encoder.encode_texts(["red " * 200])
    monkeypatch.setattr("model.clip.tokenizer.BUCKET_TOKENS", 5)
    assert rounded_up(tiny_encoder.net.clip.context_length) > tiny_encoder.net.clip.context_length
    np.testing.assert_array_equal(tiny_encoder.encode_texts(["red " * 200]), expected)


@pytest.mark.parametrize("known", [False, True])
def test_bf16_is_left_alone_where_onednn_cannot_multiply_it(towers, known, monkeypatch):
    """As with AVX2 alone, and with a PyTorch that cannot say: slower, but it works."""
    if known:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    else:
        monkeypatch.setattr("model.runtime.packed.torch.ops.mkldnn", WithoutQuestion())
    packs_fp32 = can_pack(towers)
    towers.set_precision("bf16")
    assert packs_fp32
    assert not can_pack(towers)
    with torch.inference_mode():
        assert towers.encode_text(TOKENS, MASK).isfinite().all()


class WithoutQuestion:
    """oneDNN's operations without the question whether it can multiply bf16."""

    _reorder_linear_weight = staticmethod(torch.ops.mkldnn._reorder_linear_weight)
    _linear_pointwise = staticmethod(torch.ops.mkldnn._linear_pointwise)
