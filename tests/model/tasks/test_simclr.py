"""NT-Xent with and without EMCL against the released loss (``golden/rest/simclr_loss``)."""

import pytest
import torch
from heads_support import golden_emcl, relative_error, tensors

from model.tasks.simclr import nt_xent


@pytest.mark.parametrize("name", ["plain", "emcl_unit"])
def test_loss_and_gradient(golden, name):
    arrays = tensors(golden("rest/simclr_loss"))
    rows = arrays["features"].clone().requires_grad_()
    emcl = None if name == "plain" else golden_emcl(arrays, "emcl/", 24, training=True)
    loss = nt_xent(rows, temperature=float(arrays["temperature"]), emcl=emcl)
    assert float(loss.detach()) == pytest.approx(float(arrays[f"{name}/loss"]), abs=1e-5)
    loss.backward()
    assert relative_error(rows.grad, arrays[f"{name}/grad"]) < 1e-3
    if emcl is not None:
        torch.testing.assert_close(emcl.state, arrays[f"{name}/M_out"], atol=1e-6, rtol=0)


def test_every_image_needs_two_views():
    with pytest.raises(ValueError, match="got 3 rows"):
        nt_xent(torch.ones(3, 4))
