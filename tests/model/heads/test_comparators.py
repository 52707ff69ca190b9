"""The paper's comparators against float64 numbers from their equations (``golden/rest/comparators``)."""

import pytest
import torch
from heads_support import tensors
from torch import nn

from model.heads.comparators import (
    FeedForwardCorrection,
    PcaCorrection,
    SparseAutoencoderCorrection,
    TransformerCorrection,
    build_comparator,
)


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/comparators"))


def close(found, expected):
    torch.testing.assert_close(found.detach(), expected, atol=1e-9, rtol=0)


def test_pca_of_the_batch_and_of_fixed_rows(arrays):
    rows = arrays["X_f64"]
    pca = PcaCorrection(16, kept=int(arrays["kept"]), fit="batch").double()
    close(pca.correction(rows), arrays["pca/fX_f64"])
    close(pca(rows), arrays["pca/out_f64"])
    fixed = PcaCorrection(16, kept=int(arrays["kept"]), fit="fixed").double()
    fixed.fit_on(rows)
    close(fixed.mean_D, arrays["pca/mean_f64"])
    close(fixed.eval()(rows[:3]), arrays["pca/out_f64"][:3])
    values = torch.linalg.eigvalsh(fixed.covariance_DD)
    assert float(values[-4:].sum() / values.sum()) == pytest.approx(float(arrays["pca/variance_share_f64"]), abs=1e-9)


def test_running_axes_move_in_training_alone(arrays):
    rows, pca = arrays["X_f64"], PcaCorrection(16, kept=4).double()
    close(pca.train()(rows), arrays["pca/out_f64"])  # the first batch counts in full
    pca(rows * 2)
    close(pca.mean_D, arrays["pca/mean_f64"] * (0.9 + 0.1 * 2))
    before = pca.mean_D.clone()
    pca.eval()(rows * 5)
    close(pca.mean_D, before)


@pytest.mark.parametrize(("name", "kind"), [("fc", FeedForwardCorrection), ("sae", SparseAutoencoderCorrection)])
def test_feed_forward_and_sparse_autoencoder(arrays, name, kind):
    module = kind(16, inner=int(arrays["inner"])).double()
    state = {"first.weight": "W1", "first.bias": "b1", "second.weight": "W2", "second.bias": "b2"}
    module.load_state_dict({ours: arrays[f"{theirs}_f64"] for ours, theirs in state.items()})
    close(module(arrays["X_f64"]), arrays[f"{name}/out_f64"])
    if name == "sae":
        error, divergence = module.penalties(arrays["X_f64"])
        close(module.hidden(arrays["X_f64"]).mean(dim=0), arrays["sae/mean_activation_f64"])
        close(error, arrays["sae/reconstruction_f64"])
        close(divergence, arrays["sae/kl_f64"])
        close(module.penalty(arrays["X_f64"]), arrays["sae/reconstruction_f64"] + 1e-3 * arrays["sae/kl_f64"])


@pytest.mark.parametrize(("rows", "name"), [("batch", "out"), ("single", "out_single_rows")])
def test_transformer(arrays, rows, name):
    module = TransformerCorrection(16, heads=4, inner=int(arrays["inner"]), rows=rows).double().eval()
    prefix = "transformer/state/"
    state = {
        f"layer.{key.removeprefix(prefix).removesuffix('_f64')}": value
        for key, value in arrays.items()
        if key.startswith(prefix)
    }
    module.load_state_dict(state)
    close(module(arrays["X_f64"]), arrays[f"transformer/{name}_f64"])


def test_sizes_are_those_that_the_paper_calls_similar():
    counts = {
        kind: sum(parameter.numel() for parameter in build_comparator(kind, 512).parameters())
        for kind in ("none", "pca", "transformer", "fc", "sae")
    }
    assert counts == {"none": 0, "pca": 0, "transformer": 1577984, "fc": 262912, "sae": 262912}


def test_no_correction_is_the_rows_and_identity_is_where_fc_can_start(arrays):
    rows = arrays["X_f64"]
    close(build_comparator("none", 16).double()(rows), rows)
    close(FeedForwardCorrection(16, start_at_identity=True).double()(rows), rows)
    assert isinstance(build_comparator("transformer", 512).layer, nn.TransformerEncoderLayer)
    with pytest.raises(ValueError, match="comparators are"):
        build_comparator("emcl", 16)
