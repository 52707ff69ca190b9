"""What the log says of an EM pass: distinct bases, effective rank, size of the correction."""

import math

import pytest
import torch
import torch.nn.functional as F

from model.config import EMCLConfig
from model.emcl.diagnostics import count_distinct, diagnose, effective_rank
from model.emcl.em import EMCL


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
