"""Loss terms: gradients at the ratios where papers say them, and numbers by hand."""

import math

import pytest
import torch

from rlhf_lab.contracts import Minibatch, PolicyOutput
from rlhf_lab_plugins.objective.entropy import Entropy
from rlhf_lab_plugins.objective.ppo_clip import PPOClip, clipped_surrogate
from rlhf_lab_plugins.objective.pretrain_mix import PretrainMix
from rlhf_lab_plugins.objective.value_clip import ValueClip, clipped_value_loss

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
TOKEN_MEAN = MASK.double() / 5
SEQUENCE_MEAN = torch.tensor([[1 / 4, 1 / 4, 0], [1 / 6, 1 / 6, 1 / 6]], dtype=torch.float64)


def minibatch(weights=SEQUENCE_MEAN, **fields):
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    defaults = {"old_logprobs_BT": zeros, "advantages_BT": zeros, "returns_BT": zeros, "scores_B": zeros[:, 0], "beta": 0.1}
    return Minibatch(mask_BT=MASK, weights_BT=weights, token_weights_BT=TOKEN_MEAN, **{**defaults, **fields})


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    "advantage, ratio, slope",
    [
        *[(1.0, ratio, -1.0) for ratio in (0.5, 0.8, 0.9, 1.0, 1.1)],
        (1.0, 1.5, 0.0),
        (-1.0, 0.5, 0.0),
        *[(-1.0, ratio, 1.0) for ratio in (0.9, 1.0, 1.1, 1.5)],
    ],
)
def test_slope_of_the_clipped_surrogate(advantage, ratio, slope):
    ratio = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    clipped_surrogate(ratio, torch.tensor(advantage, dtype=torch.float64), 0.2).backward()
    assert ratio.grad.item() == slope


@pytest.mark.parametrize(
    "advantage, ratio, loss", [(2.0, 1.5, -2.4), (2.0, 0.5, -1.0), (-2.0, 1.5, 3.0), (-2.0, 0.5, 1.6), (0.0, 9.0, 0.0)]
)
def test_the_clipped_surrogate_is_pessimistic(advantage, ratio, loss):
    """−min(ρA, clip(ρ)A) with ε = 0.2: the clip limits what is gained, never what is lost."""
    got = clipped_surrogate(torch.tensor(ratio, dtype=torch.float64), torch.tensor(advantage, dtype=torch.float64), 0.2)
    assert got.item() == pytest.approx(loss, abs=1e-12)


def test_ppo_and_its_metrics_by_hand():
    """Ratios 1.5, 0.5 | 1, 1.1, 0.7 with advantages 1, 1 | −1, 2, −1: the clip decides at the first and the last."""
    ratios = matrix([1.5, 0.5, 1.0], [1.0, 1.1, 0.7])
    advantages = matrix([1, 1, 0], [-1, 2, -1])
    losses = [[-1.2, -0.5], [1.0, -2.2, 0.8]]
    loss = PPOClip().loss(PolicyOutput(ratios.log()), minibatch(advantages_BT=advantages))
    assert loss.value.item() == pytest.approx(sum(losses[0]) / 4 + sum(losses[1]) / 6, abs=1e-12)
    assert loss.metrics["clip_fraction"].item() == pytest.approx(2 / 5)
    assert loss.metrics["ratio"].item() == pytest.approx((1.5 + 0.5 + 1 + 1.1 + 0.7) / 5)
    squares = [math.log(r) ** 2 for r in (1.5, 0.5, 1.0, 1.1, 0.7)]
    assert loss.metrics["approx_kl"].item() == pytest.approx(0.5 * sum(squares) / 5)


def test_at_ratio_1_the_gradient_is_that_of_the_policy_gradient():
    logprobs = matrix([-1.0, -2.0, 0.0], [-0.5, -1.5, -0.1]).requires_grad_()
    advantages = matrix([0.3, -0.7, 0.0], [1.1, 0.2, -2.0])
    PPOClip().loss(
        PolicyOutput(logprobs), minibatch(old_logprobs_BT=logprobs.detach(), advantages_BT=advantages)
    ).value.backward()
    assert torch.allclose(logprobs.grad, -SEQUENCE_MEAN * advantages, atol=1e-12)


def test_eps_is_the_clip_range():
    new, batch = (
        PolicyOutput(matrix([2.0, 1.0, 1.0], [1.0, 1.0, 1.0]).log()),
        minibatch(TOKEN_MEAN, advantages_BT=MASK.double()),
    )
    assert PPOClip(eps=0.5).loss(new, batch).value.item() == pytest.approx(-(1.5 + 4) / 5)


@pytest.mark.parametrize(
    "value, old, ret, loss",
    [
        (1.0, 1.0, 3.0, 2.0),  # unmoved: ½ · 2²
        (1.5, 1.0, 3.0, 1.62),  # moved by more than ε towards the return: the clipped 1.2 counts, ½ · 1.8²
        (1.1, 1.0, 3.0, 1.805),  # within ε: ½ · 1.9²
        (0.5, 1.0, 3.0, 3.125),  # moved away: the plain loss is larger, ½ · 2.5²
        (4.0, 1.0, 3.0, 1.62),  # overshot: clipped ½ · 1.8² against ½ · 1²
    ],
)
def test_value_loss_by_hand(value, old, ret, loss):
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (value, old, ret)]
    assert clipped_value_loss(*tensors, 0.2).item() == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("value, slope", [(1.0, -2.0), (1.1, -1.9), (1.5, 0.0), (0.5, -2.5)])
def test_the_clip_stops_the_value_from_running(value, slope):
    value = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    clipped_value_loss(value, torch.tensor(1.0), torch.tensor(3.0), 0.2).backward()
    assert value.grad.item() == pytest.approx(slope)


def test_value_term_and_its_metric():
    """Four values unmoved (loss ½ R²), one moved past the clip."""
    values, old = matrix([0, 0, 9], [0, 0, 1.0]), matrix([0, 0, 0], [0, 0, 0])
    returns = matrix([1, 2, 9], [1, 2, 3])
    loss = ValueClip().loss(
        PolicyOutput(values, values_BT=values), minibatch(TOKEN_MEAN, old_values_BT=old, returns_BT=returns)
    )
    assert loss.value.item() == pytest.approx((0.5 + 2 + 0.5 + 2 + 0.5 * 2.8**2) / 5)
    assert loss.metrics["value_clip_fraction"].item() == pytest.approx(1 / 5)


def test_the_entropy_bonus_is_minus_the_weighted_entropy():
    entropy = matrix([1.0, 2.0, 0.0], [0.5, 0.5, 2.0])
    assert Entropy().loss(PolicyOutput(entropy, entropy), minibatch()).value.item() == pytest.approx(-(3 / 4 + 3 / 6))


def test_the_pretraining_term_is_the_token_mean_whatever_the_aggregation():
    logprobs = matrix([-1.0, -2.0, 0.0], [-3.0, -1.0, -3.0])
    assert PretrainMix().loss(PolicyOutput(logprobs), minibatch()).value.item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    "term, needs", [(PPOClip(), set()), (ValueClip(), {"values"}), (Entropy(), {"entropy"}), (PretrainMix(), {"pretrain"})]
)
def test_terms_say_what_they_need(term, needs):
    assert term.needs == needs


def test_published_defaults():
    assert (PPOClip().eps, ValueClip().eps, ValueClip().weight) == (0.2, 0.2, 0.1)
    assert (PretrainMix().weight, PretrainMix().ratio) == (27.8, 8)
