"""KL estimators by hand, and their expectations and gradients by enumeration of a categorical law."""

import math

import pytest
import torch

from rlhf_lab.kl import ESTIMATORS, absolute, k1, k2, k3, sequence_kl

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
