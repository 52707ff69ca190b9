"""A meta-step against the PyTorch port, which is first order, and the true second order (``golden/rest/maml_step``)."""

from __future__ import annotations

import pytest
import torch
from heads_support import golden_emcl, relative_error, tensors

from model.tasks.maml import accuracy, adapt, convolutional_net, meta_loss
from model.tasks.simclr import nt_xent


@pytest.fixture
def arrays(golden):
    return tensors(golden("rest/maml_step"))


def start(arrays):
    net = convolutional_net(1, 3, filters=4, blocks=2, features=16, relu_first=True)
    names = [name for name, _ in net.named_parameters()]
    values = [arrays[f"param0/{n}"].clone().requires_grad_() for n in range(10)]
    assert [tuple(value.shape) for value in values] == [tuple(part.shape) for _, part in net.named_parameters()]
    return net, dict(zip(names, values, strict=True))


@pytest.mark.parametrize(("order", "name"), [(1, "meta_grad"), (2, "meta_grad_second_order")])
def test_meta_gradient(arrays, order, name):
    net, parameters = start(arrays)
    loss = meta_loss(
        net,
        parameters,
        (arrays["x_support"], arrays["y_support"].long()),
        (arrays["x_query"], arrays["y_query"].long()),
        steps=int(arrays["update_step"]),
        rate=float(arrays["update_lr"]),
        order=order,
    )
    assert float(loss.detach()) == pytest.approx(float(arrays["query_loss"]), abs=1e-5)
    found = torch.autograd.grad(loss, list(parameters.values()))
    for n, gradient in enumerate(found):
        expected = arrays[f"{name}/{n}"]
        if expected.norm() > 1e-5:  # a convolution's bias before batch norm has rounding for a gradient
            assert relative_error(gradient, expected) < 1e-3, n


def test_orders_differ(arrays):
    first = torch.cat([arrays[f"meta_grad/{n}"].flatten() for n in range(10)])
    second = torch.cat([arrays[f"meta_grad_second_order/{n}"].flatten() for n in range(10)])
    assert relative_error(first, second) > 0.1


def test_accuracies_while_adapting(arrays):
    net, parameters = start(arrays)
    settings = {"steps": int(arrays["update_step"]), "rate": float(arrays["update_lr"])}
    shares = torch.zeros(int(arrays["update_step"]) + 1)
    for task in range(2):
        path = adapt(net, parameters, arrays["x_support"][task], arrays["y_support"][task].long(), **settings)
        query = arrays["x_query"][task], arrays["y_query"][task].long()
        shares += torch.tensor([accuracy(net, values, *query) for values in path]) / 2
    assert shares.tolist() == pytest.approx(arrays["train_accuracies_f64"].tolist(), abs=1e-6)


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
