"""The optimisers: BertAdam equals the reference's traces; groups, schedules and refused settings."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numeric_support import tolerance
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from training_support import tiny, train_until_killed

from model.net import build_net
from model.train.config import OptimiserConfig
from model.train.optimiser import BertAdam, build_optimiser, rate_factor, set_learning_rates, warmup_cosine
from model.train.run import train


def golden_optimiser(arrays: dict[str, np.ndarray]) -> tuple[dict[str, nn.Parameter], BertAdam]:
    parameters = {
        name: nn.Parameter(torch.from_numpy(arrays[f"param0/{name}"].copy())) for name in arrays["group_order"]
    }
    lr, coefficient = float(arrays["lr"]), float(arrays["coef_lr"])
    groups = [
        {
            "params": [parameter],
            "peak": lr * coefficient if name.startswith("clip_") else lr,
            "weight_decay": float(arrays["weight_decay"]) if name.endswith("_w") else 0.0,
        }
        for name, parameter in parameters.items()
    ]
    optimiser = BertAdam(
        groups,
        beta1=float(arrays["b1"]),
        beta2=float(arrays["b2"]),
        warmup_share=float(arrays["warmup"]),
        steps=int(arrays["t_total"]),
    )
    return parameters, optimiser


@pytest.mark.parametrize("variant", ["inner_only", "global_then_inner"])
def test_bert_adam_equals_the_golden_traces(golden, variant):
    arrays = golden("optimizer")
    parameters, optimiser = golden_optimiser(arrays)
    close = tolerance(np.float32, sum(parameter.numel() for parameter in parameters.values()))
    for step in range(10):
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(arrays[f"grad_raw/{name}"][step].copy())
        if variant == "global_then_inner":
            norm = nn.utils.clip_grad_norm_(parameters.values(), float(arrays["max_grad_norm"]))
            assert float(norm) == pytest.approx(
                arrays["global_then_inner/global_norm_before_clip"][step], rel=2 * close
            )
        optimiser.step()
        for name, parameter in parameters.items():
            expected = arrays[f"{variant}/param_trace/{name}"][step]
            # Some ten roundings a step: two moments, their quotient, the decay, the schedule, the sum.
            most = 2 * tolerance(np.float32, 10 * (step + 1), condition=float(np.abs(expected).max()))
            np.testing.assert_allclose(parameter.detach(), expected, rtol=0, atol=most, err_msg=f"{name}, step {step}")
    assert np.abs(arrays[f"{variant}/param_trace/new_w"][9] - arrays["param0/new_w"]).max() > 1e-2  # it did move


def test_rates_equal_the_golden_ones(golden):
    arrays = golden("optimizer")
    steps = int(arrays["t_total"])
    config = OptimiserConfig(kind="bert-adam", warmup_share=float(arrays["warmup"]))
    _, optimiser = golden_optimiser(arrays)
    for step in range(10):
        set_learning_rates(optimiser, step, steps, config)
        rates = [group["lr"] for group in optimiser.param_groups]
        np.testing.assert_allclose(rates, arrays["inner_only/lr_used"][step], rtol=1e-9)


def test_schedule_equals_the_golden_one_with_its_jump_and_its_late_rise(golden):
    arrays = golden("optimizer")
    factors = [warmup_cosine(float(x), 0.1) for x in arrays["schedule_x"]]
    np.testing.assert_allclose(factors, arrays["schedule_f_warm0.1"], atol=1e-9)
    assert warmup_cosine(0.0999, 0.1) == pytest.approx(0.999)
    assert warmup_cosine(0.1, 0.1) == pytest.approx(0.5 * (1 + math.cos(0.1 * math.pi)))
    assert warmup_cosine(1.2, 0.1) > warmup_cosine(1.0, 0.1)


def test_a_parameter_without_a_gradient_stands_still_in_the_schedule():
    often, seldom = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimiser = BertAdam(
        [{"params": [often, seldom], "peak": 0.1, "weight_decay": 0.0}],
        beta1=0.9,
        beta2=0.98,
        warmup_share=0.5,
        steps=10,
    )
    for step in range(3):
        often.grad = torch.ones(3)
        seldom.grad = torch.ones(3) if step == 2 else None
        optimiser.step()
    assert float(optimiser.state[often]["step"]) == 3
    assert float(optimiser.state[seldom]["step"]) == 1
    assert torch.equal(seldom, torch.ones(3))  # its own first step has rate 0
    assert (often < 1).all()


def test_state_is_tensors_alone_and_a_restored_one_goes_on_alike(golden):
    arrays = golden("optimizer")
    runs = []
    for stop in (None, 4):
        parameters, optimiser = golden_optimiser(arrays)
        for step in range(8):
            if step == stop:  # another optimiser over the same values, filled with the tensors of the first
                saved = [{k: v.clone() for k, v in optimiser.state[p].items()} for p in parameters.values()]
                values = [p.detach().clone() for p in parameters.values()]
                parameters, optimiser = golden_optimiser(arrays)
                for parameter, value, tensors in zip(parameters.values(), values, saved, strict=True):
                    parameter.data.copy_(value)
                    optimiser.state[parameter] = tensors
            for name, parameter in parameters.items():
                parameter.grad = torch.from_numpy(arrays[f"grad_raw/{name}"][step].copy())
            optimiser.step()
        assert all(isinstance(v, torch.Tensor) for state in optimiser.state.values() for v in state.values())
        runs.append([p.detach().clone() for p in parameters.values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_bert_adam_leaves_gradients_alone_and_wants_the_length_of_the_run(tiny_config):
    net = build_net(tiny_config)
    optimiser = build_optimiser(net, OptimiserConfig(kind="bert-adam"))
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    with pytest.raises(RuntimeError, match="set_learning_rates"):
        optimiser.step()
    set_learning_rates(optimiser, 0, 100, OptimiserConfig(kind="bert-adam"))
    optimiser.step()
    assert all(bool((parameter.grad == 2).all()) for parameter in net.parameters())


def names_by_group(net: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    return {
        names[id(parameter)]: (group["peak"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }


def test_bert_adam_groups_by_name_as_the_reference(tiny_config):
    net = build_net(tiny_config)
    config = OptimiserConfig(kind="bert-adam", learning_rate=1e-4, encoder_learning_rate=1e-7, train_patches=False)
    groups = names_by_group(net, build_optimiser(net, config))
    assert groups["clip.model.logit_scale"] == (1e-7, 0.2)
    assert groups["clip.model.ln_final.weight"] == (1e-7, 0.2)
    assert groups["clip.model.ln_final.bias"] == (1e-7, 0.0)
    assert groups["temporal.blocks.resblocks.0.ln_1.weight"] == (1e-4, 0.2)
    assert groups["temporal.blocks.resblocks.0.attn.in_proj_bias"] == (1e-4, 0.0)
    assert groups["temporal.positions.weight"] == (1e-4, 0.2)
    frozen = "clip.model.visual.conv1.weight"
    assert set(dict(net.named_parameters())) - set(groups) == {frozen}
    assert not dict(net.named_parameters())[frozen].requires_grad


def test_adamw_decays_matrices_alone(tiny_config):
    net = build_net(tiny_config)
    config = OptimiserConfig(learning_rate=1e-3, encoder_learning_rate=1e-5)
    optimiser = build_optimiser(net, config)
    assert isinstance(optimiser, torch.optim.AdamW)
    groups = names_by_group(net, optimiser)
    assert groups.keys() == dict(net.named_parameters()).keys()
    assert groups["clip.model.logit_scale"] == (1e-5, 0.0)
    assert groups["clip.model.visual.conv1.weight"] == (1e-5, 0.2)
    assert groups["temporal.blocks.resblocks.0.ln_1.weight"] == (1e-3, 0.0)
    assert groups["temporal.blocks.resblocks.0.mlp.c_fc.weight"] == (1e-3, 0.2)
    set_learning_rates(optimiser, 0, 1000, config)
    assert {group["lr"] for group in optimiser.param_groups} == {1e-3 / 100, 1e-5 / 100}


def test_adamw_schedule_is_continuous_and_ends_at_the_final_share():
    config = OptimiserConfig(warmup_steps=10, final_share=0.1)
    factors = [rate_factor(step, 110, config) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[110] == pytest.approx(0.1)
    assert max(abs(a - b) for a, b in pairwise(factors)) <= 0.1 + 1e-12


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"warmup_share": 0.1}, "adamw does not read warmup_share.*warmup_steps and final_share"),
        ({"kind": "bert-adam", "warmup_steps": 10}, "bert-adam does not read warmup_steps; .*warmup_share"),
        ({"kind": "bert-adam", "final_share": 0.0}, "bert-adam does not read final_share"),
        ({"kind": "sgd"}, "'adamw' or 'bert-adam'"),
    ],
)
def test_settings_that_the_kind_does_not_read_are_refused(settings, complaint):
    with pytest.raises(ValidationError, match=complaint):
        OptimiserConfig(**settings)


@pytest.mark.parametrize("kind", ["adamw", "bert-adam"])
def test_a_written_configuration_reads_back(kind):
    config = OptimiserConfig(kind=kind)
    assert OptimiserConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_killed_and_resumed_run_with_bert_adam_ends_in_the_same_bits(tmp_path, monkeypatch):
    config = tiny(optimiser={"kind": "bert-adam", "learning_rate": 1e-3, "encoder_learning_rate": 1e-3})
    whole = load_file(train(config, tmp_path / "whole"))
    train_until_killed(monkeypatch, config, tmp_path / "killed")  # one step after a checkpoint: that is done again
    resumed = load_file(train(config, tmp_path / "killed", resume=True))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    adamw = load_file(train(tiny(), tmp_path / "adamw"))
    assert any(not torch.equal(adamw[name], tensor) for name, tensor in whole.items())
