"""Weights laid out for oneDNN: the same features, and left as they are where oneDNN cannot use them here."""

import pytest
import torch

from model.net import build_net
from model.runtime_packed import can_pack, pack

TOKENS = torch.arange(40).reshape(2, 20)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


@pytest.fixture
def towers(tiny_config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_net(tiny_config).eval().clip


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 3e-2)])
def test_packed_towers_compute_the_same(towers, precision, tolerance):
    towers.set_precision(precision)
    if not can_pack(towers):
        pytest.skip("oneDNN cannot do this here")
    with torch.inference_mode():
        expected = towers.encode_text(TOKENS, MASK)
        pack(towers)
        torch.testing.assert_close(towers.encode_text(TOKENS, MASK), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("known", [False, True])
def test_bf16_is_left_alone_where_onednn_cannot_multiply_it(towers, known, monkeypatch):
    """As with AVX2 alone, and with a PyTorch that cannot say: slower, but it works."""
    if known:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    else:
        monkeypatch.setattr("model.runtime_packed.torch.ops.mkldnn", WithoutQuestion())
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
