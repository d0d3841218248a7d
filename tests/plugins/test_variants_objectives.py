"""Loss terms: numbers by hand, and gradients against those of exact divergences over a small vocabulary."""

import math

import numpy as np
import pytest
import torch
from tiny_world import component

from rlhf_lab.contracts import Minibatch, PolicyOutput
from rlhf_lab_plugins.objective.cispo import CISPO
from rlhf_lab_plugins.objective.clip_higher import ClipHigher, asymmetric_surrogate
from rlhf_lab_plugins.objective.dual_clip import DualClip, dual_clipped_surrogate
from rlhf_lab_plugins.objective.gspo import GSPO
from rlhf_lab_plugins.objective.kl_loss import KLLoss
from rlhf_lab_plugins.objective.kl_penalty import KLPenalty
from rlhf_lab_plugins.objective.policy_gradient import PolicyGradient
from rlhf_lab_plugins.objective.ppo_clip import PPOClip
from rlhf_lab_plugins.objective.value_clip import ValueClip
from rlhf_lab_plugins.objective.value_huber import ValueHuber
from rlhf_lab_plugins.objective.value_plain import ValuePlain

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
TOKEN_MEAN = MASK.double() / 5
SEQUENCE_MEAN = torch.tensor([[1 / 4, 1 / 4, 0], [1 / 6, 1 / 6, 1 / 6]], dtype=torch.float64)


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def minibatch(weights=SEQUENCE_MEAN, beta=0.0, **fields):
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    defaults = {"old_logprobs_BT": zeros, "advantages_BT": zeros, "returns_BT": zeros, "scores_B": zeros[:, 0], "beta": beta}
    return Minibatch(mask_BT=MASK, weights_BT=weights, token_weights_BT=TOKEN_MEAN, **{**defaults, **fields})


def loss_and_slope(term, ratios, advantages, weights=SEQUENCE_MEAN):
    """The term at these ratios (old log-probs 0), and its derivative by the new log-probs."""
    logprobs = matrix(*ratios).log().requires_grad_()
    loss = term.loss(PolicyOutput(logprobs), minibatch(weights, advantages_BT=matrix(*advantages)))
    return loss, torch.autograd.grad(loss.value, logprobs)[0]


def scalar(function, ratio, advantage, *rest):
    ratio = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    loss = function(ratio, torch.tensor(advantage, dtype=torch.float64), *rest)
    loss.backward()
    return loss.item(), ratio.grad.item()


@pytest.mark.parametrize(
    "advantage, ratio, loss, slope",
    [
        (-1.0, 5.0, 3.0, 0.0),  # the second clip: −cA
        (-1.0, 2.0, 2.0, 1.0),  # past the first clip, which does nothing on this side
        (-2.0, 2.9, 5.8, 2.0),
        (-1.0, 0.5, 0.8, 0.0),  # the first clip
        (1.0, 5.0, -1.2, 0.0),
        (1.0, 0.5, -0.5, -1.0),
        (0.0, 50.0, 0.0, 0.0),
    ],
)
def test_dual_clip_by_hand(advantage, ratio, loss, slope):
    """ε = 0.2, c = 3."""
    assert scalar(dual_clipped_surrogate, ratio, advantage, 0.2, 3.0) == pytest.approx((loss, slope), abs=1e-12)


@pytest.mark.parametrize(
    "advantage, ratio, loss, slope",
    [
        (1.0, 1.25, -1.25, -1.0),  # past 1.2, not yet past 1.28
        (1.0, 1.5, -1.28, 0.0),
        (-1.0, 0.7, 0.8, 0.0),
        (-1.0, 0.9, 0.9, 1.0),
        (-1.0, 1.5, 1.5, 1.0),
        (1.0, 0.5, -0.5, -1.0),
    ],
)
def test_clip_higher_by_hand(advantage, ratio, loss, slope):
    """ε = 0.2 below and 0.28 above."""
    assert scalar(asymmetric_surrogate, ratio, advantage, 0.2, 0.28) == pytest.approx((loss, slope), abs=1e-12)


RATIOS = ([1.25, 0.5, 1.0], [1.0, 4.0, 0.7])
ADVANTAGES = ([1.0, 1.0, 0.0], [-1.0, -2.0, -1.0])


def test_with_equal_bounds_clip_higher_is_ppo():
    got, expected = (loss_and_slope(term, RATIOS, ADVANTAGES) for term in (ClipHigher(eps_low=0.2, eps_high=0.2), PPOClip()))
    assert torch.equal(got[1], expected[1]) and {k: v.item() for k, v in got[0].metrics.items()} == pytest.approx(
        {k: v.item() for k, v in expected[0].metrics.items()}
    )


def test_dual_clip_differs_from_ppo_only_past_c():
    """Ratio 4 with A = −2: PPO has 8, dual clip 6, at a sequence weight of 1/6."""
    dual, ppo = (loss_and_slope(term, RATIOS, ADVANTAGES)[0] for term in (DualClip(), PPOClip()))
    assert (ppo.value - dual.value).item() == pytest.approx(2 / 6, abs=1e-12)
    assert dual.metrics["dual_clip_fraction"].item() == pytest.approx(1 / 5)
    assert dual.metrics["clip_fraction"].item() == pytest.approx(ppo.metrics["clip_fraction"].item()) == pytest.approx(2 / 5)


def test_the_policy_gradient_is_minus_weight_times_advantage_at_any_ratio():
    for ratios in (RATIOS, ([1.0] * 3, [1.0] * 3)):
        assert torch.allclose(loss_and_slope(PolicyGradient(), ratios, ADVANTAGES)[1], -SEQUENCE_MEAN * matrix(*ADVANTAGES))


def test_gspo_by_hand():
    """Ratios 1.25, 0.8 | 1.1, 1.1, 1.1 have s = 1 | 1.1; A = 2 | −3: the loss is −½(2·1) + ½(3·1.1), nothing is clipped."""
    ratios, advantages = ([1.25, 0.8, 1.0], [1.1, 1.1, 1.1]), ([2.0, 2.0, 0.0], [-3.0] * 3)
    loss, slope = loss_and_slope(GSPO(), ratios, advantages)
    assert loss.value.item() == pytest.approx(-1.0 + 1.65, abs=1e-12)
    assert torch.allclose(slope, matrix([-0.5 * 2 / 2, -0.5 * 2 / 2, 0.0], [0.5 * 3 * 1.1 / 3] * 3), atol=1e-12)
    assert loss.metrics["clip_fraction"].item() == 0.0


def test_gspo_clips_whole_responses():
    """s = e^0.0005 is past 1 + 4e-4 with A > 0, s = e^−0.0004 past 1 − 3e-4 with A < 0, whatever single tokens did."""
    logs = matrix([0.3, -0.299, 0.0], [-0.2, 0.4, -0.2012])
    advantages = ([1.0, 1.0, 0.0], [-1.0] * 3)
    loss, slope = loss_and_slope(GSPO(), logs.exp().tolist(), advantages)
    assert loss.value.item() == pytest.approx(-0.5 * 1.0004 + 0.5 * 0.9997, abs=1e-12)
    assert (slope == 0).all() and loss.metrics["clip_fraction"].item() == pytest.approx(1.0)


def test_gspos_ratio_does_not_hear_masked_places():
    new = PolicyOutput(matrix([0.1, 0.2, 9.0], [0.0, 0.1, 0.2]))
    quiet = PolicyOutput(matrix([0.1, 0.2, 0.0], [0.0, 0.1, 0.2]))
    batch = minibatch(advantages_BT=matrix([1.0, 1.0, 0.0], [1.0] * 3))
    assert GSPO().loss(new, batch).value.item() == GSPO().loss(quiet, batch).value.item()


@pytest.mark.parametrize(
    "term, weights",
    [
        (CISPO(), [[1.25, 0.5, 0.0], [1.0, 4.0, 0.7]]),
        (CISPO(eps_high=2.0), [[1.25, 0.5, 0.0], [1.0, 2.0, 0.7]]),
        (CISPO(threshold="verl", eps_low=0.2, eps_high=0.28), [[1.25, 0.8, 0.0], [1.0, 1.28, 0.8]]),
    ],
    ids=str,
)
def test_cispo_bounds_the_weight_and_drops_no_gradient(term, weights):
    """Its slope is −w·min(ρ, bound)·A, also where PPO's is 0."""
    loss, slope = loss_and_slope(term, RATIOS, ADVANTAGES)
    assert torch.allclose(slope, -SEQUENCE_MEAN * matrix(*weights) * matrix(*ADVANTAGES), atol=1e-12)
    moved = sum(w != r for w_row, r_row in zip(weights, RATIOS, strict=True) for w, r in zip(w_row, r_row, strict=True))
    assert loss.metrics["clip_fraction"].item() == pytest.approx((moved - 1) / 5)  # without the masked place


@pytest.mark.parametrize("wrong", [{"threshold": "verl"}, {"eps_low": 0.2}, {"threshold": "paper"}, {"eps_high": 0}])
def test_cispos_conventions_are_not_mixed(wrong):
    with pytest.raises(ValueError):
        component("objective", {"name": "cispo", **wrong})


@pytest.mark.parametrize(
    "term", [PPOClip(), ClipHigher(), DualClip(), CISPO(), KLPenalty(), PolicyGradient(), CISPO(threshold="verl", eps_low=0.2)]
)
def test_at_ratio_1_all_are_the_policy_gradient(term):
    slope = loss_and_slope(term, ([1.0] * 3, [1.0] * 3), ADVANTAGES)[1]
    assert torch.allclose(slope, -SEQUENCE_MEAN * matrix(*ADVANTAGES), atol=1e-12)


# Exact gradients: a vocabulary of four, every token once, weighted with the probability of drawing it.

OLD, REF, NEW = ([0.1, 0.5, -0.3, 0.0], [0.9, -0.2, 0.1, 0.3], [-0.4, 0.6, 0.2, 0.1])


def law(logits):
    return torch.tensor(logits, dtype=torch.float64).softmax(0)


def enumerated(term, logits, old, ref=REF, advantages=(0.0, 0.0, 0.0, 0.0)):
    """The expectation of the term over one token drawn from `old`, as a function of the logits of π."""
    weights_BT, ones = law(old)[:, None], torch.ones(4, 1, dtype=torch.float64)
    batch = Minibatch(
        mask_BT=ones.bool(), weights_BT=weights_BT, token_weights_BT=weights_BT, old_logprobs_BT=law(old).log()[:, None],
        advantages_BT=torch.tensor(advantages, dtype=torch.float64)[:, None], returns_BT=ones, scores_B=ones[:, 0], beta=1.0,
        ref_logprobs_BT=law(ref).log()[:, None],
    )  # fmt: skip
    exact_BT = kl(logits.softmax(0), law(ref)).expand(4, 1)
    return term.loss(PolicyOutput(logits.log_softmax(0)[:, None], kl_BT=exact_BT), batch).value


def kl(p, q):
    return (p * (p.log() - q.log())).sum()


def slopes(function, at):
    logits = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(logits), logits)[0]


REVERSE = (lambda z: kl(z.softmax(0), law(REF)), "KL(π‖ref)")
FORWARD = (lambda z: kl(law(REF), z.softmax(0)), "KL(ref‖π)")
NOTHING = (lambda z: 0.0 * z.sum(), "nothing")


@pytest.mark.parametrize("estimator, truth", [("k1", NOTHING), ("k2", REVERSE), ("k3", FORWARD)], ids=["k1", "k2", "k3"])
def test_the_gradient_of_each_estimator_on_policy(estimator, truth):
    """Samples of π itself: what the estimator is worth as a loss is not what its value says."""
    got = slopes(lambda z: enumerated(KLLoss(estimator=estimator, importance_weight=False), z, NEW), NEW)
    assert torch.allclose(got, slopes(truth[0], NEW), atol=1e-12)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
@pytest.mark.parametrize("old", [NEW, OLD], ids=["on policy", "off policy"])
def test_the_importance_weight_makes_the_gradient_right_on_policy_and_off(estimator, old):
    """And the value too, but for k2, which is biased whatever its weight."""
    term = KLLoss(estimator=estimator)
    got = slopes(lambda z: enumerated(term, z, old), NEW)
    assert torch.allclose(got, slopes(REVERSE[0], NEW), atol=1e-12)
    value = enumerated(term, torch.tensor(NEW, dtype=torch.float64), old).item()
    right = value == pytest.approx(REVERSE[0](torch.tensor(NEW, dtype=torch.float64)).item(), abs=1e-12)
    assert right == (estimator != "k2")


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_without_the_weight_the_gradient_is_wrong_off_policy(estimator):
    got = slopes(lambda z: enumerated(KLLoss(estimator=estimator, importance_weight=False), z, OLD), NEW)
    assert (got - slopes(REVERSE[0], NEW)).abs().max() > 0.02


def test_the_estimators_by_hand():
    """D = 1 at one token of weight ¼, 0 elsewhere."""
    new = PolicyOutput(matrix([1.0, 0.0, 0.0], [0.0] * 3))
    expected = {"k1": 1.0, "k2": 0.5, "k3": math.exp(-1), "abs": 1.0}
    for name, value in expected.items():
        batch = minibatch(beta=0.3, ref_logprobs_BT=torch.zeros(2, 3, dtype=torch.float64))
        loss = KLLoss(estimator=name, importance_weight=False).loss(new, batch)
        assert loss.value.item() == pytest.approx(0.3 * value / 4, abs=1e-12)


def test_the_penalty_on_the_update_may_take_the_controllers_beta():
    assert KLPenalty().needs == frozenset() and KLPenalty(beta=None).needs == {"beta"}
    ratios, advantages = matrix(*RATIOS).log(), matrix(*ADVANTAGES)
    one, other = (
        term.loss(PolicyOutput(ratios), minibatch(beta=0.7, advantages_BT=advantages)).value.item()
        for term in (KLPenalty(beta=0.7), KLPenalty(beta=None))
    )
    assert one == other != KLPenalty().loss(PolicyOutput(ratios), minibatch(advantages_BT=advantages)).value.item()


def test_several_heads_are_trained_each_on_its_own():
    """The loss is the mean of the heads' losses, which is more than that of their mean by half their variance."""
    heads, returns = torch.stack([torch.zeros(2, 3), torch.full((2, 3), 2.0)]).double(), torch.full((2, 3), 1.0).double()
    batch = minibatch(TOKEN_MEAN, returns_BT=returns, old_values_BT=returns)
    for term in (ValuePlain(), ValueClip(eps=9.0), ValueHuber(delta=9.0)):
        leaf = heads.clone().requires_grad_()
        loss = term.loss(PolicyOutput(leaf[0], values_BT=leaf), batch)
        loss.value.backward()
        assert loss.value.item() == pytest.approx(0.5) and all(metric.shape == () for metric in loss.metrics.values())
        torch.testing.assert_close(leaf.grad, torch.stack([-TOKEN_MEAN, TOKEN_MEAN]) / 2)


def test_the_penalty_of_ppo_is_on_the_kl_from_old_to_new():
    """Value and gradient of −E_π[A] + β KL(π_old‖π), against the exact ones."""
    advantages = (0.5, -1.0, 2.0, 0.1)

    def exact(z):
        return -(z.softmax(0) * torch.tensor(advantages, dtype=torch.float64)).sum() + 3.0 * kl(law(OLD), z.softmax(0))

    got = slopes(lambda z: enumerated(KLPenalty(beta=3.0), z, OLD, advantages=advantages), NEW)
    assert torch.allclose(got, slopes(exact, NEW), atol=1e-12)
    at = torch.tensor(NEW, dtype=torch.float64)
    assert enumerated(KLPenalty(), at, OLD, advantages=advantages).item() == pytest.approx(exact(at).item(), abs=1e-12)


def test_the_penalty_is_never_negative_and_0_without_a_step():
    metrics = loss_and_slope(KLPenalty(), RATIOS, ADVANTAGES)[0].metrics
    expected = np.mean([r - 1 - math.log(r) for r in (1.25, 0.5, 1.0, 4.0, 0.7)])
    assert metrics["step_kl"].item() == pytest.approx(expected, abs=1e-12) and expected > 0
    assert loss_and_slope(KLPenalty(), ([1.0] * 3, [1.0] * 3), ADVANTAGES)[0].metrics["step_kl"].item() == 0.0


@pytest.mark.parametrize(
    "error, loss, slope", [(0.0, 0.0, 0.0), (0.5, 0.125, 0.5), (-1.0, 0.5, -1.0), (3.0, 2.5, 1.0), (-9.0, 8.5, -1.0)]
)
def test_huber_by_hand(error, loss, slope):
    """δ = 1: ½e² inside, |e| − ½ outside, at a weight of ¼."""
    values = matrix([error, 0.0, 0.0], [0.0] * 3).requires_grad_()
    got = ValueHuber().loss(PolicyOutput(values, values_BT=values), minibatch()).value
    assert got.item() == pytest.approx(loss / 4, abs=1e-12)
    assert torch.autograd.grad(got, values)[0][0, 0].item() == pytest.approx(slope / 4, abs=1e-12)


def test_the_plain_value_loss_by_hand():
    values, returns = matrix([1.0, 2.0, 0.0], [0.0, 0.0, 3.0]), matrix([0.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    got = ValuePlain().loss(PolicyOutput(values, values_BT=values), minibatch(returns_BT=returns)).value.item()
    assert got == pytest.approx((0.5 + 2.0) / 4 + (0.5 + 4.5) / 6, abs=1e-12)


def test_near_the_old_value_all_value_losses_agree():
    values, returns = matrix([0.1, 0.05, 0.0], [0.0, -0.1, 0.1]), matrix([0.5, 0.2, 0.0], [-0.3, 0.1, 0.6])
    batch = minibatch(returns_BT=returns, old_values_BT=torch.zeros(2, 3, dtype=torch.float64))
    terms = (ValuePlain(), ValueHuber(), ValueClip(), ValueHuber(delta=50.0))
    losses = [term.loss(PolicyOutput(values, values_BT=values), batch).value.item() for term in terms]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "dual_clip", "c": 1.0},
        {"name": "dual_clip", "eps": 1.0},
        {"name": "clip_higher", "eps_low": 1.0},
        {"name": "clip_higher", "eps_high": 0},
        {"name": "gspo", "eps_low": 0},
        {"name": "kl_penalty", "beta": -1},
        {"name": "kl_loss", "estimator": "k4"},
        {"name": "kl_loss", "weight": -0.1},
        {"name": "value_huber", "delta": 0},
        {"name": "value_plain", "eps": 0.2},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        component("objective", wrong)


SURROGATES = ["clip_higher", "dual_clip", "gspo", "cispo", "kl_penalty", "policy_gradient"]


@pytest.mark.parametrize("terms", [[name] for name in SURROGATES], ids=str)
def test_each_trains_a_policy(run_stage, terms):
    """A few steps on a reward for one word: the policy says it more often than at the start."""
    parameters = {"reward": "words", "critic": "none", "advantage": "rloo", "objective": terms, "samples_per_prompt": 4,
                  "batch_size": 32, "steps": 6, "inner_epochs": 2, "response_length": 4, "learning_rate": 0.01, "kl": "none",
                  "schedule": "constant", "aggregation": "sequence_mean", "evaluation": {"every": 6, "samples": 4}}  # fmt: skip
    first, *_, last = run_stage("rl", parameters).rows("validation")
    assert last["reward_proxy"] > first["reward_proxy"]


@pytest.mark.parametrize("value_loss", ["value_plain", "value_huber"])
def test_each_trains_a_critic(run_stage, value_loss):
    """With the policy held still the critic explains more of the returns at the end than at the start."""
    terms = [{"name": "ppo_clip", "weight": 0.0}, {"name": value_loss, "weight": 1.0}]
    parameters = {"reward": "words", "objective": terms, "batch_size": 64, "steps": 8, "response_length": 4, "kl": "none",
                  "critic": {"name": "value_model", "learning_rate": 0.01}, "schedule": "constant",
                  "learning_rate": 1e-9}  # fmt: skip
    rows = run_stage("rl", parameters).rows("train")
    assert rows[-1]["explained_variance"] > rows[0]["explained_variance"] and rows[-1]["explained_variance"] > 0


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs", "full"])
def test_a_kl_in_the_loss_holds_the_policy_back(run_stage, estimator):
    """With β = 2 it ends nearer to the reference than with β = 0."""
    parameters = {"reward": "words", "critic": "none", "advantage": "rloo", "samples_per_prompt": 4, "batch_size": 32,
                  "objective": ["ppo_clip", {"name": "kl_loss", "estimator": estimator}], "kl_placement": "loss", "steps": 5,
                  "response_length": 4, "learning_rate": 0.01, "evaluation": {"every": 6, "samples": 4}}  # fmt: skip
    free, held = (
        run_stage("rl", {**parameters, "kl": {"name": "fixed", "beta": beta}}).rows("validation")[-1]["kl"] for beta in (0, 2)
    )
    assert free > 0.1 and held < 0.9 * free
