"""The fast equivalents that score: every number and every rank as the plain definitions give them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numeric_support import rounding_spread, tolerance

from model.config import EMCLConfig, PoolingConfig
from model.emcl import fast_pass
from model.emcl.em import EMCL
from model.emcl.fast_pass import Factored, corrected_cosines, covariance, factored_pass, prefers_covariance
from model.emcl.pooling import pool_by_captions, pool_stored_videos, pool_videos
from model.net import build_net

DIM = 48
# The reference's identical bases are told apart by rounding alone where sigma is small: it is compared at sigma 1.
CONFIGS = {
    "channel": EMCLConfig(num_bases=8, beta=0.3, sigma=0.1),
    "channel-strong": EMCLConfig(num_bases=32, beta=2.0, sigma=0.03, iterations=5),
    "channel-off": EMCLConfig(num_bases=8, beta=0.0),
    "reference": EMCLConfig.reference(num_bases=8),
    "reference-one-round": EMCLConfig.reference(num_bases=8, iterations=1),
}


def module_of(name, dim=DIM):
    return EMCL(dim, CONFIGS[name]).eval()


def rows_of(count, dim=DIM, batch=2, seed=0, common=1.0):
    """Random rows with a common direction, as real features have one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, count, dim, generator=generator) + common * torch.randn(dim, generator=generator)


def last(rows):
    unit = F.normalize(rows, dim=-1)
    return torch.bmm(unit[:, :-1], unit[:, -1:].mT)[..., 0]


def halves(rows):
    first, second = F.normalize(rows, dim=-1).chunk(2, dim=1)
    return (first * second).sum(dim=-1)


SCORES = {last: Factored.cosines_to_last, halves: Factored.cosines_of_halves}


def assert_as_exact_as_the_plain_pass(module, rows, mask=None):
    """In float64 the fast scores are the plain ones; in float32 both err by what rounding can do to them, no more."""
    double = copy.deepcopy(module).double()
    for score, method in SCORES.items():
        some = rows if score is last or rows.shape[1] % 2 == 0 else rows[:, :-1]
        some_mask = None if mask is None else mask[:, : some.shape[1]]
        if some.shape[1] == 0:
            continue

        def plain(module, rows, score=score, mask=some_mask):
            return score(module(rows, mask))

        def fast(module, rows, method=method, mask=some_mask):
            return method(factored_pass(module, rows, mask))

        exact = plain(double, some.double())
        for dtype, computing in ((torch.float32, module), (torch.float64, double)):
            spread = sum(rounding_spread(lambda c=c, x=some: c(double, x.double()), dtype) for c in (plain, fast))
            for compute in (plain, fast):
                assert float((compute(computing, some.to(dtype)) - exact).abs().max()) <= spread


@pytest.fixture(params=["rows", "covariance"])
def loop(request, monkeypatch):
    """Each of the two loops, whatever the number of rows would choose."""
    monkeypatch.setattr(fast_pass, "prefers_covariance", lambda *shape: request.param == "covariance")
    return request.param


@pytest.mark.parametrize("count", [1, 2, 17, 200, 2000])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_equal_the_plain_pass_at_any_number_of_candidates(name, count, loop):
    with torch.inference_mode():
        assert_as_exact_as_the_plain_pass(module_of(name), rows_of(count + 1, batch=1 if count > 200 else 2))


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e"])
def test_scores_equal_golden_passes(golden, name, loop):
    arrays = golden(f"emcl_pass_{name}")
    embds = torch.from_numpy(arrays["embds"])
    config = EMCLConfig.reference(
        num_bases=int(arrays["k"]),
        iterations=int(arrays["stage_num"]),
        sigma=float(arrays["lamd"]),
        beta=float(arrays["beta"]),
    )
    module = EMCL(embds.shape[-1], config).eval()
    module.state.copy_(torch.from_numpy(arrays["M_in"]))
    unit = F.normalize(torch.from_numpy(arrays["out"]).double(), dim=-1)
    double = copy.deepcopy(module).double()
    with torch.inference_mode():
        scores = factored_pass(module, embds[None], None).cosines_to_last()[0]
        spread = rounding_spread(lambda: factored_pass(double, embds[None].double(), None).cosines_to_last())
        spread += rounding_spread(lambda: last(double(embds[None].double())))  # the golden pass was in float32 too
    np.testing.assert_allclose(scores.numpy(), (unit[:-1] @ unit[-1]).numpy(), rtol=0, atol=spread)


@pytest.mark.parametrize("name", ["channel", "reference"])
def test_masked_rows_are_inert(name, loop):
    module = module_of(name)
    with torch.inference_mode():
        rows = rows_of(61, batch=3)
        mask = torch.rand(3, 61, generator=torch.Generator().manual_seed(1)) < 0.7
        mask[:, -1] = True
        mask[1, :-1] = False  # a query without a single candidate
        assert_as_exact_as_the_plain_pass(module, rows, mask)
        fast = factored_pass(module, rows, mask).cosines_to_last()
        garbage = torch.where(mask[..., None], rows, 1e3)
        assert torch.equal(factored_pass(module, garbage, mask).cosines_to_last(), fast)


def test_a_query_never_feels_who_shares_its_batch():
    module = module_of("channel")
    with torch.inference_mode():
        rows = rows_of(102, batch=4)
        for which in SCORES.values():
            together = corrected_cosines(module, rows, None, which)
            for one in range(4):
                assert torch.equal(corrected_cosines(module, rows[one : one + 1], None, which)[0], together[one])


def test_zero_rows_score_zero_and_nan_stays_nan():
    module = module_of("channel")
    with torch.inference_mode():
        rows = rows_of(9, batch=1)
        rows[0, 3] = 0
        scores = factored_pass(module, rows, None).cosines_to_last()[0]
        assert scores[3] == 0
        assert torch.isfinite(scores).all()
        rows[0, 3, 5] = torch.nan
        assert torch.isnan(factored_pass(module, rows, None).cosines_to_last()).all()


def test_the_covariance_is_symmetric_and_right_at_any_width():
    for dim in (1, 100, 128, 300):
        rows = rows_of(40, dim=dim)
        square = covariance(rows)
        most = tolerance(torch.float32, 40, condition=float((rows.abs().mT @ rows.abs()).max()))
        torch.testing.assert_close(square.double(), rows.double().mT @ rows.double(), rtol=0, atol=most)
        assert torch.equal(square, square.mT)


def test_the_covariance_is_for_many_rows():
    chosen = [prefers_covariance(rows, 512, 32, 9) for rows in (2, 101, 201, 1001, 2001)]
    assert chosen == [False, False, False, True, True]


def test_a_training_module_cannot_score_by_factors():
    with pytest.raises(ValueError, match="eval"):
        factored_pass(module_of("channel").train(), rows_of(3), None)


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pooling_stored_features_equals_the_plain_one(how, dtype, monkeypatch):
    from model.emcl import pooling

    monkeypatch.setattr(pooling, "BLOCK_ELEMENTS", 7 * 5 * 48)  # seven candidates a block, the last one shorter
    generator = torch.Generator().manual_seed(2)
    text = torch.randn(2, 48, generator=generator)
    features = torch.randn(2, 30, 5, 48, generator=generator).to(dtype)
    mask = torch.rand(2, 30, 5, generator=generator) < 0.8
    mask[0, 4] = False
    config = PoolingConfig(mask=how)
    with torch.inference_mode():
        pooled, weights = pool_stored_videos(text, features, mask, config)
        expected = pool_videos(text.double(), features.double(), mask, config)
        for number, found in enumerate((pooled, weights)):
            spread = rounding_spread(lambda n=number: pool_videos(text.double(), features.double(), mask, config)[n])
            assert float((found - expected[number]).abs().max()) <= spread
    assert pooled[0, 4].abs().max() == 0


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (1, 2, 0)])
def test_pooling_nothing_gives_nothing(shape):
    with torch.inference_mode():
        pooled, weights = pool_stored_videos(
            torch.ones(shape[0], 4), torch.ones(*shape, 4).half(), torch.ones(shape, dtype=torch.bool), PoolingConfig()
        )
    assert (tuple(pooled.shape), tuple(weights.shape)) == ((*shape[:2], 4), shape)
    assert pooled.abs().sum() == 0


@pytest.mark.parametrize(
    ("mode", "candidates"), [("channel", 1), ("channel", 100), ("channel", 1000), ("reference", 1), ("reference", 100)]
)
@pytest.mark.parametrize("rerank", ["emcl", "none"])
def test_the_net_scores_the_same_with_and_without_gradients(tiny_config, mode, candidates, rerank):
    """With gradients the net takes the plain path, without them the fast one: both directions, with masks."""
    net = build_net(tiny_config.model_copy(update={"emcl": CONFIGS[mode]})).eval()
    generator = torch.Generator().manual_seed(3)
    dim = net.embed_dim
    text = 0.02 * torch.randn(2, dim, generator=generator)  # small: the reference does not normalise, and sums rows
    features = (0.02 * torch.randn(2, candidates, 3, dim, generator=generator) + text[0]).half()
    mask = torch.rand(2, candidates, 3, generator=generator) < 0.9
    there = torch.rand(2, candidates, generator=generator) < 0.9
    captions = 0.02 * torch.randn(2, candidates, dim, generator=generator) + text[1]
    double = copy.deepcopy(net.emcl).double()

    def scored_in_double(pooled, texts, mask, score):
        rows = torch.cat([pooled, texts], dim=1)
        return score(double(rows, mask) if rerank == "emcl" else rows)

    def videos_in_double():
        pooled, weights = pool_videos(text.double(), features.double(), mask, net.config.pooling)
        return scored_in_double(pooled, text.double()[:, None], F.pad(there, (0, 1), value=True), last), weights

    def captions_in_double():
        pooled, weights = pool_by_captions(captions.double(), features[:, 0].double(), mask[:, 0], net.config.pooling)
        return scored_in_double(pooled, captions.double(), there.repeat(1, 2), halves), weights

    for call, in_double in (
        (lambda: net.score_videos(text, features, mask, there, rerank), videos_in_double),
        (lambda: net.score_captions(features[:, 0].float(), mask[:, 0], captions, there, rerank), captions_in_double),
    ):
        plain = call()
        with torch.no_grad():
            fast = call()
            scores, weights = in_double()
            off_scores, off_weights = (rounding_spread(lambda n=n, f=in_double: f()[n]) for n in (0, 1))
        for found in (plain, fast):
            assert float((found.scores_QN.detach() - scores)[there].abs().max()) <= off_scores
            assert float((found.frame_weights_QNF.detach() - weights).abs().max()) <= off_weights
            assert bool((found.scores_QN[~there] == -torch.inf).all())
