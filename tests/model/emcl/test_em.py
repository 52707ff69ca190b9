"""The EM pass: golden numbers of the reference, invariances of ours, the frozen map against the pass."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numeric_support import assert_within_rounding, rounding_spread, score_tolerance, tolerance

from model.config import EMCLConfig
from model.emcl.diagnostics import count_distinct, diagnose, effective_rank
from model.emcl.em import EMCL, FrozenMap, channel_em, reference_em


def module_from(golden: dict[str, np.ndarray]) -> EMCL:
    config = EMCLConfig.reference(
        num_bases=int(golden["k"]),
        iterations=int(golden["stage_num"]),
        sigma=float(golden["lamd"]),
        beta=float(golden["beta"]),
        momentum=float(golden.get("momentum", 0.9)),  # the gradient fixture moves no state that it gives
    )
    module = EMCL(golden["embds"].shape[-1], config)
    module.train(bool(golden["if_train"]) if "if_train" in golden else True)
    state = golden["M_in"] if "M_in" in golden else golden["M_trace"][0]
    module.state.copy_(torch.from_numpy(state))
    return module


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e"])
def test_reference_pass_equals_golden(golden, name):
    arrays = golden(f"emcl_pass_{name}")

    def correction_and_state(dtype=torch.float64):
        module, embds = module_from(arrays).to(dtype), torch.from_numpy(arrays["embds"]).to(dtype)
        correction = module(embds) - embds
        return torch.cat([correction.flatten(), module.state.flatten()])

    expected = np.concatenate([(arrays["out"] - arrays["embds"]).ravel(), arrays["M_out"].ravel()])
    assert_within_rounding(correction_and_state(torch.float32), torch.from_numpy(expected), correction_and_state)
    assert bool(arrays["if_train"]) == (not np.array_equal(arrays["M_in"], arrays["M_out"]))


def test_reference_pass_equals_multi_expert_golden(golden):
    """The MMT copy: one pass per expert, a kernel width that multiplies, unit output rows."""
    arrays = golden("emcl_pass_mmt")
    momentum = float(arrays["momentum"])

    def out_and_state(dtype=torch.float64):
        embds, state = torch.from_numpy(arrays["embds"]).to(dtype), torch.from_numpy(arrays["M_in"]).to(dtype)
        mu, z = reference_em(embds, state, iterations=int(arrays["stage_num"]), sigma=1 / float(arrays["lamd"]))
        out = F.normalize(float(arrays["beta"]) * (mu @ z.mT) + embds, dim=-1)
        moved = momentum * state + (1 - momentum) * mu.mean(dim=1, keepdim=True)
        return torch.cat([out.flatten(), moved.flatten()])

    expected = np.concatenate([arrays["out"].ravel(), arrays["M_out"].ravel()])
    assert_within_rounding(out_and_state(torch.float32), torch.from_numpy(expected), out_and_state)


def test_reference_state_follows_golden_sequence(golden):
    arrays = golden("emcl_ema_sequence")

    def trace(dtype=torch.float64):
        module, found = module_from(arrays).train().to(dtype), []
        for embds in torch.from_numpy(arrays["embds"]).to(dtype):
            found += [module.state.flatten().clone(), (module(embds) - embds).flatten()]
        return torch.cat([*found, module.state.flatten()])

    expected = []
    for step, embds in enumerate(arrays["embds"]):
        expected += [arrays["M_trace"][step].ravel(), (arrays["out"][step] - embds).ravel()]
    expected = np.concatenate([*expected, arrays["M_trace"][-1].ravel()])
    assert_within_rounding(trace(torch.float32), torch.from_numpy(expected), trace)


def test_reference_gradient_takes_the_correction_for_a_constant(golden):
    arrays = golden("emcl_grad")

    def correction_and_gradient(dtype=torch.float64):
        embds = torch.from_numpy(arrays["embds"]).to(dtype).requires_grad_()
        out = module_from(arrays).to(dtype)(embds)
        loss = (torch.from_numpy(arrays["cotangent"]).to(dtype) * out / out.norm(dim=-1, keepdim=True)).sum()
        (gradient,) = torch.autograd.grad(loss, embds)
        return torch.cat([(out - embds).detach().flatten(), gradient.flatten()])

    expected = np.concatenate([(arrays["out"] - arrays["embds"]).ravel(), arrays["grad_embds"].ravel()])
    assert_within_rounding(correction_and_gradient(torch.float32), torch.from_numpy(expected), correction_and_gradient)


# The reference's identical bases are told apart by rounding alone where sigma is small, so it is compared at sigma 1.
@pytest.mark.parametrize(("mode", "sigma"), [("reference", 1.0), ("channel", 1.0), ("channel", 0.1)])
def test_batched_equals_looped(mode, sigma):
    module = EMCL(24, EMCLConfig(mode=mode, num_bases=6, beta=0.5, sigma=sigma)).eval()
    rows = torch.randn(5, 17, 24, generator=torch.Generator().manual_seed(1))
    looped = torch.stack([module(one) for one in rows])
    double = copy.deepcopy(module).double()
    assert_within_rounding(module(rows), looped, lambda: double(rows.double()))


@pytest.mark.parametrize("mode", ["reference", "channel"])
def test_masked_rows_are_inert(mode):
    module = EMCL(24, EMCLConfig(mode=mode, num_bases=6, beta=0.5, sigma=1.0)).eval()
    rows = torch.randn(1, 20, 24, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[0, [3, 4, 19]] = False
    out = module(rows, mask)
    double = copy.deepcopy(module).double()
    assert_within_rounding(out[mask], module(rows[mask]), lambda: double(rows.double(), mask)[mask])
    garbage = torch.where(mask[..., None], rows, 1e3)
    torch.testing.assert_close(module(garbage, mask), out, rtol=0, atol=0)
    assert out[~mask].abs().max() == 0


@pytest.mark.parametrize("mode", ["reference", "channel"])
def test_rows_are_permutation_equivariant(mode):
    module = EMCL(24, EMCLConfig(mode=mode, num_bases=6, beta=0.5, sigma=1.0)).eval()
    rows = torch.randn(30, 24, generator=torch.Generator().manual_seed(3))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(4))
    double = copy.deepcopy(module).double()
    assert_within_rounding(module(rows[order]), module(rows)[order], lambda: double(rows.double()))


@pytest.mark.parametrize("rows", [7, 101, 4000])
def test_channel_beta_is_the_ratio_of_mean_norms_at_any_number_of_rows(rows):
    module = EMCL(64, EMCLConfig(beta=0.25, num_bases=8)).eval()
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(5)) * 9
    unit = F.normalize(x, dim=-1)
    assert (module(x) - unit).norm(dim=-1).mean() == pytest.approx(0.25, abs=2 * tolerance(np.float32, max(rows, 64)))


def test_channel_beta_zero_is_the_plain_ranking():
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(EMCL(16, EMCLConfig(beta=0.0)).eval()(x), F.normalize(x, dim=-1), rtol=0, atol=0)


def distinct_bases(bases_NK: torch.Tensor) -> int:
    """Count bases that no earlier base equals (cosine above 0.9999)."""
    cosines = F.normalize(bases_NK, dim=0).T @ F.normalize(bases_NK, dim=0)
    duplicate = torch.triu(cosines > 0.9999, diagonal=1).any(dim=0)
    return int((~duplicate).sum())


@pytest.mark.parametrize(("sigma", "at_least"), [(0.1, 16), (0.03, 24)])
def test_channel_keeps_bases_distinct_where_the_reference_collapses(golden, sigma, at_least):
    rows = torch.from_numpy(golden("emcl_pass_a")["embds"])[None]
    reference = EMCL(512, EMCLConfig.reference())
    mu, _ = reference_em(rows, reference.state[None], iterations=9, sigma=1.0)
    assert distinct_bases(mu[0]) == 2
    narrow, _ = reference_em(F.normalize(rows, dim=-1), reference.state[None], iterations=9, sigma=sigma)
    assert distinct_bases(narrow[0]) <= 3  # so it is the state, not the kernel width alone
    ours = EMCL(512, EMCLConfig(num_bases=32, sigma=sigma))
    unit = F.normalize(rows, dim=-1)
    em = channel_em(unit, torch.full((1, 1, 1), unit.shape[1]), ours.state, iterations=9, sigma=sigma)
    assert distinct_bases(em.bases_BNK[0]) >= at_least


def naive_channel_pass(
    rows: np.ndarray, table: np.ndarray, *, iterations: int, sigma: float, beta: float
) -> np.ndarray:
    """The definition in float64 with loops over nothing clever: normalise, M, (E, M) x T, reconstruct, rescale."""
    x = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    points = x * np.sqrt(x.shape[1] / len(x))  # channels of unit RMS norm
    z = table.copy()
    for _ in range(iterations):
        bases = x @ (z / z.sum(axis=0))
        bases /= np.linalg.norm(bases, axis=0)
        logits = points.T @ bases / sigma
        z = np.exp(logits - logits.max(axis=1, keepdims=True))
        z /= z.sum(axis=1, keepdims=True)
    weights = z / z.sum(axis=0)
    bases = x @ weights
    bases /= np.linalg.norm(bases, axis=0)
    correction = bases @ weights.T
    return x + beta * correction / np.linalg.norm(correction, axis=1).mean()


@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.1])
def test_channel_pass_equals_its_definition(sigma):
    config = EMCLConfig(num_bases=8, iterations=5, sigma=sigma, beta=0.3)
    module = EMCL(32, config).eval()
    rows = np.random.default_rng(7).normal(size=(50, 32))
    expected = naive_channel_pass(rows, module.state.double().numpy(), iterations=5, sigma=sigma, beta=0.3)
    double, rows = copy.deepcopy(module).double(), torch.from_numpy(rows)
    spread = rounding_spread(lambda: double(rows))
    assert float((module(rows) - torch.from_numpy(expected)).abs().max()) <= spread


@pytest.mark.parametrize("mode", ["reference", "channel"])
def test_frozen_map_is_the_pass_on_its_own_corpus(mode):
    module = EMCL(32, EMCLConfig(mode=mode, num_bases=6, sigma=0.5, beta=0.4)).eval()
    corpus = torch.randn(200, 32, generator=torch.Generator().manual_seed(8))
    frozen = module.freeze(corpus)
    double = copy.deepcopy(module).double()
    assert_within_rounding(
        frozen.apply(corpus), F.normalize(module(corpus), dim=-1), lambda: F.normalize(double(corpus.double()), dim=-1)
    )


@pytest.mark.parametrize(("dim", "bases"), [(1, 1), (17, 3), (48, 8), (100, 7), (512, 32)])
def test_frozen_map_gives_a_row_the_same_bits_alone_and_among_others(dim, bases):
    corpus = torch.randn(400, dim, generator=torch.Generator().manual_seed(11))
    frozen = EMCL(dim, EMCLConfig(num_bases=bases, beta=0.4)).freeze(corpus)
    together = frozen.apply(corpus)
    for part in (slice(0, 1), slice(1, 2), slice(7, 12), slice(100, 133), slice(3, 400), slice(399, 400)):
        assert torch.equal(frozen.apply(corpus[part].clone()), together[part])


def test_frozen_map_survives_its_arrays(tmp_path):
    frozen = EMCL(16, EMCLConfig(num_bases=4)).freeze(torch.randn(50, 16))
    np.savez(tmp_path / "map.npz", **frozen.to_arrays())
    with np.load(tmp_path / "map.npz") as arrays:
        again = FrozenMap.from_arrays(arrays)
    x = torch.randn(3, 16)
    torch.testing.assert_close(again.apply(x), frozen.apply(x), rtol=0, atol=0)


def test_damaged_frozen_map_says_what_to_do():
    arrays = EMCL(16, EMCLConfig(num_bases=4)).freeze(torch.randn(50, 16)).to_arrays()
    with pytest.raises(ValueError, match="emcl index rebuild"):
        FrozenMap.from_arrays({**arrays, "base_norms": np.ones(5, np.float32)})
    del arrays["strength"]
    with pytest.raises(ValueError, match="lacks the arrays \\['strength'\\]"):
        FrozenMap.from_arrays(arrays)


@pytest.mark.parametrize("bad", [torch.full((4, 16), torch.nan), torch.zeros(0, 16), torch.zeros(4, 15)])
def test_freeze_refuses_what_cannot_be_a_corpus(bad):
    with pytest.raises(ValueError, match="frozen map needs"):
        EMCL(16, EMCLConfig()).freeze(bad)


def test_channel_state_moves_by_momentum_in_training_only():
    module = EMCL(16, EMCLConfig(num_bases=4, momentum=0.9))
    before = module.state.clone()
    module.eval()(torch.randn(20, 16))
    torch.testing.assert_close(module.state, before, rtol=0, atol=0)
    module.train()(torch.randn(20, 16))
    assert not torch.equal(module.state, before)
    torch.testing.assert_close(module.state.sum(dim=-1), torch.ones(16))  # still responsibilities
    assert "state" in module.state_dict()


def test_channel_gradient_is_that_of_the_linear_map():
    module = EMCL(12, EMCLConfig(num_bases=4, beta=0.5, iterations=3)).eval().double()
    rows = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    leaf = rows.float().requires_grad_()
    cotangent = torch.randn(9, 12, generator=torch.Generator().manual_seed(10))
    (gradient,) = torch.autograd.grad((module.float()(leaf) * cotangent).sum(), leaf)
    # The same map with responsibilities, norms and strength frozen at their converged values.
    unit = F.normalize(leaf, dim=-1)
    frozen = module.freeze(unit.detach())
    decoder = frozen.responsibilities_DK / (1e-6 + frozen.responsibilities_DK.sum(dim=0))
    mapped = unit + frozen.strength * (unit @ frozen.responsibilities_DK / frozen.base_norms_K) @ decoder.T
    (expected,) = torch.autograd.grad((mapped * cotangent).sum(), leaf)
    # Two products of 12 terms forward and two backward; the strength and the bases' norms stay below 4.
    np.testing.assert_allclose(
        gradient, expected, rtol=0, atol=score_tolerance(12, 4, condition=4 * float(cotangent.norm(dim=1).max()))
    )


def test_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"expects rows \(N, 16\)"):
        EMCL(16, EMCLConfig())(torch.zeros(3, 8))


def rows(count=40, dim=24):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0))


def test_equal_columns_count_once():
    bases = torch.eye(6)[:, [0, 1, 1, 2, 0]] * torch.tensor([1.0, 2.0, 3.0, 1.0, 5.0])
    assert count_distinct(bases) == 3
    assert count_distinct(torch.cat([bases, -bases], dim=1)) == 6  # opposite directions are two


def test_effective_rank_counts_equal_directions_and_discounts_small_ones():
    assert effective_rank(torch.eye(7)[:5]) == pytest.approx(5)
    assert effective_rank(torch.ones(9, 3)) == pytest.approx(1, abs=1e-4)
    shares = torch.tensor([0.8, 0.2])
    assert effective_rank(torch.diag(shares)) == pytest.approx(math.exp(-float((shares * shares.log()).sum())))
    assert effective_rank(torch.zeros(3, 3)) == 0


@pytest.mark.parametrize("config", [EMCLConfig(num_bases=5, beta=0.2), EMCLConfig.reference(num_bases=5)])
def test_a_diagnosis_measures_what_the_pass_adds(config):
    emcl = EMCL(24, config).eval()
    emcl.ramp = 0.5
    before = emcl.state.clone()
    found = diagnose(emcl, rows())
    base = F.normalize(rows(), dim=-1) if config.mode == "channel" else rows()
    correction = emcl(rows()) - base
    ratio = correction.norm(dim=-1).mean() / base.norm(dim=-1).mean()
    assert found.correction_ratio == pytest.approx(float(ratio), rel=1e-3)
    assert found.effective_rank == pytest.approx(effective_rank(correction), rel=1e-3)
    assert 1 <= found.distinct_bases <= 5
    assert torch.equal(emcl.state, before)


def test_the_reference_s_bases_are_seen_to_collapse():
    assert diagnose(EMCL(24, EMCLConfig.reference(num_bases=16)), rows() + 3.0).distinct_bases <= 2
    assert diagnose(EMCL(24, EMCLConfig(num_bases=16, sigma=0.03)), rows()).distinct_bases > 4
