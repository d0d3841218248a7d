"""Advantages: known numbers, double sums in float64, and laws of padding and grouping."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rlhf_lab.contracts import AdvantageInputs
from rlhf_lab_plugins.advantage.gae import GAE, gae
from rlhf_lab_plugins.advantage.monte_carlo import MonteCarlo, discounted_returns
from rlhf_lab_plugins.advantage.rloo import RLOO, leave_one_out

ESTIMATORS = [GAE(), GAE(gamma=0.9, lam=0.5), MonteCarlo(), MonteCarlo(gamma=0.7), RLOO()]
LENGTHS = (4, 1, 6, 3)


def batch(seed=0, width=6, filler=0.0, lengths=LENGTHS, groups=(0, 0, 1, 1)):
    rng = np.random.default_rng(seed)
    mask_BT = torch.arange(width) < torch.tensor(lengths)[:, None]
    rewards_BT, values_BT = (torch.full((len(lengths), width), filler, dtype=torch.float64) for _ in range(2))
    for b, n in enumerate(lengths):
        rewards_BT[b, :n], values_BT[b, :n] = torch.tensor(rng.normal(size=n)), torch.tensor(rng.normal(size=n))
    return AdvantageInputs(
        rewards_BT,
        mask_BT,
        torch.zeros(len(lengths)),
        torch.tensor(groups),
        torch.ones(len(lengths), dtype=torch.bool),
        values_BT,
    )


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize("lam, expected", [(0.95, (0.43675, 0.565, 0.7)), (0.0, (-0.1, -0.1, 0.7)), (1.0, (0.5, 0.6, 0.7))])
def test_gae_by_hand(lam, expected):
    """r = (0, 0, 1), V = (0.5, 0.4, 0.3): δ = (−0.1, −0.1, 0.7)."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert gae(row(0, 0, 1), row(0.5, 0.4, 0.3), mask, 1.0, lam)[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_its_double_sum(gamma, lam):
    """A_t = Σ_l (γλ)^l δ_{t+l} (Schulman et al. 2016, eq. 16), without recursion."""
    inputs = batch()
    advantages_BT = gae(inputs.rewards_BT, inputs.values_BT, inputs.mask_BT, gamma, lam)
    for b, n in enumerate(LENGTHS):
        r, v = inputs.rewards_BT[b, :n].tolist(), [*inputs.values_BT[b, :n].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        expected = [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
        assert advantages_BT[b, :n].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_monte_carlo_is_its_sum(gamma):
    inputs = batch()
    returns_BT = discounted_returns(inputs.rewards_BT, inputs.mask_BT, gamma)
    for b, n in enumerate(LENGTHS):
        r = inputs.rewards_BT[b, :n].tolist()
        expected = [sum(gamma ** (k - t) * r[k] for k in range(t, n)) for t in range(n)]
        assert returns_BT[b, :n].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_gae_at_lambda_1_is_monte_carlo_minus_the_value(gamma):
    inputs = batch()
    got = GAE(gamma=gamma, lam=1.0).estimate(inputs, {})
    returns_BT = MonteCarlo(gamma=gamma).estimate(inputs, {}).returns_BT
    assert torch.allclose(got.advantages_BT, (returns_BT - inputs.values_BT).masked_fill(~inputs.mask_BT, 0), atol=1e-12)
    assert torch.allclose(got.returns_BT, returns_BT, atol=1e-12)


def test_gae_at_lambda_0_is_the_td_error():
    """And returns are advantages plus the old values, un-whitened."""
    inputs = batch(lengths=(2,), groups=(0,))
    (r0, r1), (v0, v1) = inputs.rewards_BT[0, :2].tolist(), inputs.values_BT[0, :2].tolist()
    got = GAE(gamma=0.9, lam=0.0).estimate(inputs, {})
    assert got.advantages_BT[0, :2].tolist() == pytest.approx([r0 + 0.9 * v1 - v0, r1 - v1], abs=1e-12)
    assert got.returns_BT[0, :2].tolist() == pytest.approx([r0 + 0.9 * v1, r1], abs=1e-12)


@pytest.mark.parametrize("estimator", [GAE(gamma=0.9, lam=0.7), MonteCarlo(gamma=0.9)])
def test_a_masked_gap_neither_contributes_nor_decays(estimator):
    """Tokens that are not the policy's own (tools, several turns) leave the rest as if they were cut out."""
    whole = batch(lengths=(5,), width=5, groups=(0,))
    keep = torch.tensor([True, True, False, False, True])
    cut = dataclasses.replace(
        whole, rewards_BT=whole.rewards_BT[:, keep], values_BT=whole.values_BT[:, keep], mask_BT=whole.mask_BT[:, keep]
    )
    gapped = estimator.estimate(dataclasses.replace(whole, mask_BT=keep[None]), {})
    assert torch.allclose(gapped.advantages_BT[:, keep], estimator.estimate(cut, {}).advantages_BT, atol=1e-12)
    assert (gapped.advantages_BT[:, ~keep] == 0).all()


@pytest.mark.parametrize(
    "returns, expected",
    [
        ([1.0, 3.0], [-2.0, 2.0]),  # each minus the other
        ([0.0, 3.0, 6.0], [-4.5, 0.0, 4.5]),
        ([0.0, 0.0, 0.0, 4.0], [-4 / 3, -4 / 3, -4 / 3, 4.0]),
    ],
)
def test_rloo_by_hand(returns, expected):
    got = leave_one_out(torch.tensor(returns, dtype=torch.float64), torch.zeros(len(returns)))
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_rloo_is_g_over_g_minus_1_times_the_centred_return():
    """In groups of unequal size whose members are mixed up."""
    rng = np.random.default_rng(0)
    group = np.array([2, 0, 1, 0, 2, 1, 0, 2, 2, 1, 2])
    returns = rng.normal(size=len(group)) + 1000 * group
    expected = np.empty_like(returns)
    for g in range(3):
        own = returns[group == g]
        expected[group == g] = len(own) / (len(own) - 1) * (own - own.mean())
    np.testing.assert_allclose(leave_one_out(torch.tensor(returns), torch.tensor(group)).numpy(), expected, atol=1e-9)


def test_rloo_gives_each_token_the_return_of_its_response_less_that_of_its_siblings():
    """By hand: two groups of two; the return is score and KL together."""
    inputs = batch()
    totals = [inputs.rewards_BT[b, :n].sum().item() for b, n in enumerate(LENGTHS)]
    got = RLOO().estimate(inputs, {})
    expected = [totals[0] - totals[1], totals[1] - totals[0], totals[2] - totals[3], totals[3] - totals[2]]
    for b, n in enumerate(LENGTHS):
        assert got.advantages_BT[b].tolist() == pytest.approx([expected[b]] * n + [0.0] * (6 - n), abs=1e-12)
        assert got.returns_BT[b].tolist() == pytest.approx([totals[b]] * n + [0.0] * (6 - n), abs=1e-12)


def test_a_group_that_agrees_has_no_advantage():
    assert leave_one_out(torch.full((4,), 0.1), torch.zeros(4)).abs().max() < 1e-6


def test_rloo_of_a_single_sample_is_an_error():
    with pytest.raises(ValueError, match="samples_per_prompt: 2 or more"):
        leave_one_out(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("filler", [0.0, 1e9, math.nan])
def test_padding_changes_nothing(estimator, filler):
    """Neither more of it nor what stands in it; masked places of the result are 0."""
    plain, wide = estimator.estimate(batch(), {}), estimator.estimate(batch(width=11, filler=filler), {})
    for bare, padded in ((plain.advantages_BT, wide.advantages_BT), (plain.returns_BT, wide.returns_BT)):
        assert torch.equal(padded[:, :6], bare) and (padded[:, 6:] == 0).all()
        assert (bare[~batch().mask_BT] == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_the_order_of_the_sequences_changes_nothing(estimator):
    order = torch.tensor([3, 1, 0, 2])
    inputs = batch()
    shuffled = dataclasses.replace(
        inputs,
        **{
            field.name: getattr(inputs, field.name)[order]
            for field in dataclasses.fields(inputs)
            if getattr(inputs, field.name) is not None
        },
    )
    plain, moved = estimator.estimate(inputs, {}), estimator.estimate(shuffled, {})
    torch.testing.assert_close(moved.advantages_BT, plain.advantages_BT[order], atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_inputs_are_left_as_they_are(estimator):
    inputs = batch(filler=5.0)
    copies = [getattr(inputs, f.name).clone() for f in dataclasses.fields(inputs) if getattr(inputs, f.name) is not None]
    estimator.estimate(inputs, {})
    now = [getattr(inputs, f.name) for f in dataclasses.fields(inputs) if getattr(inputs, f.name) is not None]
    assert all(torch.equal(a, b) for a, b in zip(copies, now, strict=True))
