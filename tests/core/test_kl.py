"""KL estimators by hand, and their expectations and gradients by enumeration of a categorical law."""

import math

import pytest
import torch

from rlhf_lab.rl.kl import ESTIMATORS, absolute, from_old, full, k1, k2, k3, mean, per_token, sequence_kl

LOGITS = torch.tensor([0.3, -1.1, 0.8, 0.0, 1.7], dtype=torch.float64)
LOG_REF = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25], dtype=torch.float64).log()


def pi_and_ratio(logits):
    log_pi = logits.log_softmax(0)
    return log_pi.exp(), log_pi - LOG_REF


def exact_gradient(loss_of_pi):
    logits = LOGITS.clone().requires_grad_()
    loss_of_pi(logits.log_softmax(0)).backward()
    return logits.grad


REVERSE = exact_gradient(lambda log_pi: (log_pi.exp() * (log_pi - LOG_REF)).sum())
FORWARD = exact_gradient(lambda log_pi: (LOG_REF.exp() * (LOG_REF - log_pi)).sum())


@pytest.mark.parametrize(
    "name, d, expected",
    [
        ("k1", 0.5, 0.5),
        ("k2", 0.5, 0.125),
        ("k3", 0.5, 0.1065306597),
        ("abs", 0.5, 0.5),
        ("k1", -0.5, -0.5),
        ("k2", -0.5, 0.125),
        ("k3", -0.5, math.exp(0.5) - 1.5),
        ("abs", -0.5, 0.5),
        ("k1", 0.0, 0.0),
        ("k2", 0.0, 0.0),
        ("k3", 0.0, 0.0),
        ("abs", 0.0, 0.0),
    ],
)
def test_by_hand(name, d, expected):
    assert ESTIMATORS[name](torch.tensor(d, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-10)


def test_k3_is_never_negative_and_k1_may_be():
    d = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    assert (k3(d) >= 0).all() and (k1(d) < 0).any()


def test_k1_and_k3_are_unbiased_k2_and_abs_are_not():
    pi, d = pi_and_ratio(LOGITS)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(pi), torch.distributions.Categorical(LOG_REF.exp())
    ).item()
    assert (pi * k1(d)).sum().item() == pytest.approx(kl, abs=1e-12)
    assert (pi * k3(d)).sum().item() == pytest.approx(kl, abs=1e-12)
    assert abs((pi * k2(d)).sum().item() - kl) > 0.05
    assert (pi * absolute(d)).sum().item() > kl + 0.05


@pytest.mark.parametrize("name, expected", [("k1", torch.zeros(5, dtype=torch.float64)), ("k2", REVERSE), ("k3", FORWARD)])
def test_expected_gradient_as_a_loss(name, expected):
    """Sampled tokens, the estimator differentiated: k1 teaches nothing, k2 the reverse KL, k3 the forward KL."""
    logits = LOGITS.clone().requires_grad_()
    pi, d = pi_and_ratio(logits)
    (pi.detach() * ESTIMATORS[name](d)).sum().backward()
    assert torch.allclose(logits.grad, expected, atol=1e-12)


def test_the_gradients_that_are_told_apart_differ():
    assert (REVERSE - FORWARD).abs().max() > 0.1 and REVERSE.abs().max() > 0.1


@pytest.mark.parametrize("name, right", [("k1", True), ("k2", False), ("k3", False), ("abs", False)])
def test_expected_gradient_as_a_reward(name, right):
    """E[k(D) ∇ log π], D held fixed, is the gradient of the KL for k1 only."""
    logits = LOGITS.clone().requires_grad_()
    log_pi = logits.log_softmax(0)
    pi, d = log_pi.exp().detach(), (log_pi - LOG_REF).detach()
    (pi * ESTIMATORS[name](d) * log_pi).sum().backward()
    assert torch.allclose(logits.grad, REVERSE, atol=1e-12) == right
    assert right or (logits.grad - REVERSE).abs().max() > 0.02


def test_sequence_kl_sums_over_the_response_and_nothing_else():
    logprobs = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, math.nan, 1e9]])
    ref = torch.tensor([[-1.5, -1.0, 3.0], [-0.75, math.inf, math.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sequence_kl(logprobs, ref, mask).tolist() == [-0.5, 0.25]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_full_kl_is_that_of_the_two_laws_and_so_is_its_gradient(temperature):
    """Against torch.distributions at each of four positions, and against E[k1] by enumeration of the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    logits, ref = torch.randn(2, 2, 2, 5, dtype=torch.float64, generator=generator).unbind(0)
    logits.requires_grad_()
    got = full(logits, ref, temperature)
    laws = [torch.distributions.Categorical(logits=x / temperature) for x in (logits, ref)]
    expected = torch.distributions.kl_divergence(*laws)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    log_pi, log_ref = laws[0].logits, laws[1].logits
    torch.testing.assert_close((log_pi.exp() * k1(log_pi - log_ref)).sum(-1), got, atol=1e-12, rtol=0)
    slopes = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (got, expected)]
    torch.testing.assert_close(*slopes, atol=1e-12, rtol=0)


def test_full_as_a_reward_leaves_out_what_a_token_pays_for_itself():
    """Σ_v π(v) KL ∇ log π(v) = 0: with one token per response there is no gradient at all (k1's is the whole one)."""
    logits = LOGITS.clone().requires_grad_()
    log_pi = logits.log_softmax(0)
    kl = full(LOGITS[None], LOG_REF[None], 1.0)
    (log_pi.exp().detach() * kl * log_pi).sum().backward()
    assert logits.grad.abs().max() < 1e-12 < REVERSE.abs().max()


def test_per_token_takes_the_exact_one_as_it_is_given():
    x = torch.tensor([[1.0, 2.0]])
    mask = torch.tensor([[True, False]])
    assert per_token("full", x, x, mask, exact_BT=x) is x
    assert per_token("k2", x, torch.zeros_like(x), mask).tolist() == [[0.5, 0.0]]


def test_the_kl_from_the_old_policy_is_unbiased_for_samples_of_the_old_policy():
    """Σ_v π_old(v) (ρ − 1 − log ρ) = KL(π_old‖π), by enumeration, and masked places do not count."""
    old, new = LOGITS.log_softmax(0), LOG_REF
    every, mask = torch.stack([new, torch.full_like(new, math.nan)], 1), torch.tensor([[True, False]]).expand(5, 2)
    kl_B = from_old(every, torch.stack([old, torch.zeros_like(old)], 1), mask)
    assert (kl_B >= 0).all()
    assert (old.exp() * kl_B).sum().item() == pytest.approx((old.exp() * (old - new)).sum().item(), abs=1e-12)


def test_the_unit_of_the_controller():
    """KL 3 and 1 on 4 and 1 tokens: 2 per sequence, 0.8 per token."""
    mask = torch.tensor([[True] * 4, [True] + [False] * 3])
    assert mean(torch.tensor([3.0, 1.0]), mask, "sequence") == 2.0
    assert mean(torch.tensor([3.0, 1.0]), mask, "token") == pytest.approx(0.8)
