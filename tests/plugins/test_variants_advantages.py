"""Estimators without a critic and with a short sight: numbers by hand, and expected gradients by enumeration."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from tiny_world import component

from rlhf_lab.contracts import AdvantageInputs
from rlhf_lab.errors import SpecError
from rlhf_lab_plugins.advantage.dr_grpo import DrGRPO
from rlhf_lab_plugins.advantage.grpo import GRPO
from rlhf_lab_plugins.advantage.monte_carlo import MonteCarlo
from rlhf_lab_plugins.advantage.n_step import NStep
from rlhf_lab_plugins.advantage.normalized_clipped import NormalizedClipped
from rlhf_lab_plugins.advantage.opo import OPO
from rlhf_lab_plugins.advantage.pass_at_k import PassAtK
from rlhf_lab_plugins.advantage.raft import RAFT
from rlhf_lab_plugins.advantage.reinforce_baseline import ReinforceBaseline
from rlhf_lab_plugins.advantage.reinforce_pp import ReinforcePP, ReinforcePPBaseline
from rlhf_lab_plugins.advantage.remax import ReMax
from rlhf_lab_plugins.advantage.rloo import leave_one_out
from rlhf_lab_plugins.advantage.td0 import TD0

LENGTHS, GROUPS = (4, 1, 6, 3, 2, 5), (0, 1, 0, 1, 0, 1)


def batch(seed=0, lengths=LENGTHS, groups=GROUPS, width=6, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    mask_BT = torch.arange(width) < torch.tensor(lengths)[:, None]
    rewards_BT, values_BT = (torch.tensor(rng.normal(size=mask_BT.shape), dtype=dtype) * mask_BT for _ in range(2))
    ended_B = torch.ones(len(lengths), dtype=torch.bool)
    return AdvantageInputs(rewards_BT, mask_BT, torch.zeros(len(lengths)), torch.tensor(groups), ended_B, values_BT)


def one_group(returns, lengths=None, dtype=torch.float64):
    """One group whose members have these returns, all of it at the last token."""
    lengths = lengths or [1] * len(returns)
    empty = batch(lengths=lengths, groups=[0] * len(returns), width=max(lengths), dtype=dtype)
    last_B1 = torch.tensor(lengths)[:, None] - 1
    rewards_BT = torch.zeros_like(empty.rewards_BT).scatter(1, last_B1, torch.tensor(returns, dtype=dtype)[:, None])
    return dataclasses.replace(empty, rewards_BT=rewards_BT)


def advantages(estimator, returns, lengths=None, **keywords):
    """A of each member of a group; all tokens of a response must have the same."""
    inputs = one_group(returns, lengths, **keywords)
    advantages_BT = estimator.estimate(inputs, {}).advantages_BT
    assert torch.equal(advantages_BT, torch.where(inputs.mask_BT, advantages_BT[:, :1], 0.0))
    return advantages_BT[:, 0].tolist()


@pytest.mark.parametrize(
    "estimator, returns, expected",
    [
        (GRPO(eps=1e-12), [1.0, 3.0], [-(0.5**0.5), 0.5**0.5]),  # μ = 2, s = √2
        (GRPO(eps=1.0), [1.0, 3.0], [-1 / (2**0.5 + 1), 1 / (2**0.5 + 1)]),
        (GRPO(eps=1e-12), [0.0, 0.0, 3.0], [-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5]),  # μ = 1, s² = 6/2
        (DrGRPO(), [0.0, 0.0, 3.0], [-1.0, -1.0, 2.0]),
        (PassAtK(), [2.0, 5.0, 3.0], [0.0, 2.0, 0.0]),
        (PassAtK(), [0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]),
        (PassAtK(), [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]),
        (PassAtK(), [-7.0, -4.0], [0.0, 3.0]),
        (RAFT(), [1.0, 3.0, 2.0], [0.0, 1.0, 0.0]),
        (RAFT(), [1.0, 3.0, 3.0], [0.0, 0.5, 0.5]),
    ],
    ids=str,
)
def test_by_hand(estimator, returns, expected):
    assert advantages(estimator, returns) == pytest.approx(expected, abs=1e-9)


def test_opo_weighs_the_baseline_by_length():
    """Lengths 1 and 3, returns 4 and 0: b = (1·4 + 3·0)/4 = 1."""
    assert advantages(OPO(), [4.0, 0.0], [1, 3]) == pytest.approx([3.0, -1.0], abs=1e-12)


def test_opos_baseline_has_the_least_variance_if_gradients_grow_with_length():
    """b minimises Σ L_i (r_i − b)², as a search on the line finds."""
    returns, lengths = [0.3, -1.2, 2.5, 0.9], [5, 1, 2, 7]
    best = minimize_scalar(lambda b: sum(n * (r - b) ** 2 for n, r in zip(lengths, returns, strict=True))).x
    assert advantages(OPO(), returns, lengths) == pytest.approx([r - best for r in returns], abs=1e-6)


@pytest.mark.parametrize("scale, shift", [(10.0, 0.0), (1.0, -3.0), (0.01, 5.0)])
def test_grpo_forgets_scale_and_offset_of_the_reward(scale, shift):
    returns = [0.3, -1.2, 2.5, 0.9]
    moved = advantages(GRPO(eps=1e-12), [scale * r + shift for r in returns])
    assert moved == pytest.approx(advantages(GRPO(eps=1e-12), returns), abs=1e-8)


@pytest.mark.parametrize("estimator", [GRPO(), DrGRPO(), PassAtK(), ReinforcePPBaseline()], ids=str)
@pytest.mark.parametrize("value", [0.1, -3.7])
def test_a_group_that_agrees_has_no_advantage(estimator, value):
    """Exactly none, also in fp32, where a rounded mean would be blown up by 1/ε."""
    assert advantages(estimator, [value] * 7, dtype=torch.float32) == [0.0] * 7


@pytest.mark.parametrize("size", [2, 4, 9])
def test_dr_grpo_is_rloo_shrunk(size):
    returns = np.random.default_rng(size).normal(size=size)
    rloo = leave_one_out(torch.tensor(returns), torch.zeros(size)).numpy()
    assert advantages(DrGRPO(), returns.tolist()) == pytest.approx((size - 1) / size * rloo, abs=1e-12)


def test_groups_are_told_apart():
    """Interleaved groups against numpy, one group at a time."""
    inputs = batch()
    totals, groups = inputs.rewards_BT.sum(1).numpy(), np.array(GROUPS)
    got = GRPO().estimate(inputs, {})
    for g in (0, 1):
        own = totals[groups == g]
        expected = (own - own.mean()) / (own.std(ddof=1) + 1e-4)
        assert got.advantages_BT[torch.tensor(groups == g), 0].tolist() == pytest.approx(expected, abs=1e-12)
    assert got.returns_BT[:, 0].tolist() == pytest.approx(totals, abs=1e-12)


REWARDS, LOGITS = torch.tensor([0.0, 0.4, 1.5], dtype=torch.float64), [0.2, 0.5, -0.4]


def expected_gradient(estimator, size, state):
    """E[Σ_i A_i ∇log π(y_i)] over all ways to draw `size` actions from a softmax of three."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(0)
    total = 0.0
    for actions in itertools.product(range(3), repeat=size):
        chosen = torch.tensor(actions)
        inputs = one_group(REWARDS[chosen].tolist())
        advantages_B = estimator.estimate(inputs, state).advantages_BT[:, 0]
        chance = logprobs[chosen].sum().exp().detach()
        total = total + chance * (advantages_B * logprobs[chosen]).sum()
    return torch.autograd.grad(total, logits)[0]


def gradient_of(objective):
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(objective(logits.softmax(0)), logits)[0]


def mean_reward(law):
    return (law * REWARDS).sum()


def best_of_three(law):
    draws = itertools.product(range(3), repeat=3)
    return sum(law[i] * law[j] * law[k] * REWARDS[[i, j, k]].max() for i, j, k in draws)


@pytest.mark.parametrize(
    "estimator, objective, factor, state",
    [
        (MonteCarlo(), mean_reward, 3, {}),
        (ReinforceBaseline(), mean_reward, 3, {"total": 1.4, "weight": 2.0}),
        (DrGRPO(), mean_reward, 2, {}),  # (G−1)/G of G samples
        (OPO(), mean_reward, 2, {}),  # equal lengths: the group's mean
        (PassAtK(), best_of_three, 1, {}),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_the_expected_gradient_is_the_one_that_is_claimed(estimator, objective, factor, state):
    """By enumeration of all groups of three, against the gradient of the exact objective."""
    assert torch.allclose(expected_gradient(estimator, 3, state), factor * gradient_of(objective), atol=1e-12)


def test_reinforce_pp_whitens_the_rewards_to_go_of_all_tokens():
    inputs = batch()
    rows = zip(inputs.rewards_BT.tolist(), LENGTHS, strict=True)
    togo = [sum(row[k] * 0.9 ** (k - t) for k in range(t, n)) for row, n in rows for t in range(n)]
    got = ReinforcePP(gamma=0.9).estimate(inputs, {})
    white = (np.array(togo) - np.mean(togo)) / np.sqrt(np.var(togo, ddof=1) + 1e-8)
    assert got.advantages_BT[inputs.mask_BT].tolist() == pytest.approx(white, abs=1e-12)
    assert got.returns_BT[inputs.mask_BT].tolist() == pytest.approx(togo, abs=1e-12)


def test_reinforce_pp_with_baseline_has_a_mean_per_group_and_one_scale():
    inputs = batch()
    totals, groups = inputs.rewards_BT.sum(1).numpy(), np.array(GROUPS)
    centred = totals - np.array([totals[groups == g].mean() for g in groups])
    tokens = np.repeat(centred, LENGTHS)
    got = ReinforcePPBaseline().estimate(inputs, {}).advantages_BT[inputs.mask_BT].tolist()
    assert got == pytest.approx((tokens - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8), abs=1e-12)


@pytest.mark.parametrize("estimator", [ReinforcePP(ddof=0), ReinforcePPBaseline(ddof=0)], ids=str)
def test_whitened_advantages_have_mean_0_and_variance_1(estimator):
    inputs = batch()
    tokens = estimator.estimate(inputs, {}).advantages_BT[inputs.mask_BT].numpy()
    assert (tokens.mean(), tokens.var()) == pytest.approx((0.0, 1.0), abs=1e-6)


def test_the_moving_baseline_by_hand():
    """Batches with mean return 2, 4 and 9; weights 0.5: b = 0, then 2, then (4 + 0.5·2)/1.5."""
    estimator, state, seen = ReinforceBaseline(decay=0.5), {}, []
    for returns in ([1.0, 3.0], [4.0, 4.0], [8.0, 10.0]):
        estimate = estimator.estimate(one_group(returns, [1, 2]), state)
        assert estimate.returns_BT[1].tolist() == [returns[1]] * 2
        seen.append([r - a for r, a in zip(returns, estimate.advantages_BT[:, 0].tolist(), strict=True)])
        state = dict(estimate.state)
    assert np.array(seen) == pytest.approx(np.array([[0, 0], [2, 2], [10 / 3, 10 / 3]]), abs=1e-12)


def test_without_memory_the_baseline_is_the_batch_before():
    state = ReinforceBaseline(decay=0.0).estimate(one_group([1.0, 3.0]), {"total": 50.0, "weight": 1.0}).state
    assert state["total"] / state["weight"] == pytest.approx(2.0)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_n_steps_and_then_the_critic(n, gamma):
    """The sum as it is written, sequence by sequence."""
    inputs = batch()
    got = NStep(n=n, gamma=gamma).estimate(inputs, {})
    for b, length in enumerate(LENGTHS):
        r, v = inputs.rewards_BT[b].tolist(), inputs.values_BT[b].tolist()
        for t in range(length):
            expected = sum(gamma**k * r[t + k] for k in range(min(n, length - t))) - v[t]
            expected += gamma**n * v[t + n] if t + n < length else 0.0
            assert got.advantages_BT[b, t].item() == pytest.approx(expected, abs=1e-12)
            assert got.returns_BT[b, t].item() == pytest.approx(expected + v[t], abs=1e-12)


def test_td0_by_hand():
    """r = (0, 0, 1), V = (0.5, 0.4, 0.3), γ = 1: δ = (−0.1, −0.1, 0.7)."""
    rows = [torch.tensor([x], dtype=torch.float64) for x in ((0.0, 0.0, 1.0), (0.5, 0.4, 0.3))]
    inputs = dataclasses.replace(batch(lengths=(3,), groups=(0,), width=3), rewards_BT=rows[0], values_BT=rows[1])
    got = TD0().estimate(inputs, {})
    assert got.advantages_BT[0].tolist() == pytest.approx([-0.1, -0.1, 0.7], abs=1e-12)
    assert got.returns_BT[0].tolist() == pytest.approx([0.4, 0.3, 1.0], abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_one_step_is_td0_and_many_are_monte_carlo(gamma):
    inputs = batch()
    one, many = (NStep(n=n, gamma=gamma).estimate(inputs, {}) for n in (1, 99))
    td0, whole = TD0(gamma=gamma).estimate(inputs, {}), MonteCarlo(gamma=gamma).estimate(inputs, {})
    assert torch.allclose(one.advantages_BT, td0.advantages_BT, atol=1e-12)
    assert torch.allclose(one.returns_BT, td0.returns_BT, atol=1e-12)
    assert torch.allclose(many.returns_BT, whole.returns_BT, atol=1e-12)


@pytest.mark.parametrize("estimator", [TD0(gamma=0.9), NStep(n=2, gamma=0.9), ReinforcePP(gamma=0.9)], ids=str)
def test_a_masked_gap_is_as_if_it_were_cut_out(estimator):
    whole = batch(lengths=(5,), groups=(0,), width=5)
    keep = torch.tensor([True, True, False, False, True])
    cut = {name: getattr(whole, name)[:, keep] for name in ("rewards_BT", "values_BT", "mask_BT")}
    gapped = estimator.estimate(dataclasses.replace(whole, mask_BT=keep[None]), {}).advantages_BT
    assert torch.allclose(gapped[:, keep], estimator.estimate(dataclasses.replace(whole, **cut), {}).advantages_BT, atol=1e-12)
    assert (gapped[:, ~keep] == 0).all()


def test_normalised_advantages_are_clipped_after_the_whitening():
    inputs = batch()
    tokens = MonteCarlo().estimate(inputs, {}).advantages_BT[inputs.mask_BT].numpy()
    got = NormalizedClipped(source=MonteCarlo(), clip=0.5).estimate(inputs, {})
    white = np.clip((tokens - tokens.mean()) / np.sqrt(tokens.var() + 1e-8), -0.5, 0.5)
    assert got.advantages_BT[inputs.mask_BT].tolist() == pytest.approx(white, abs=1e-12) and abs(white).max() == 0.5
    assert torch.equal(got.returns_BT, MonteCarlo().estimate(inputs, {}).returns_BT)


GROUPED = [GRPO(), DrGRPO(), OPO(), PassAtK(), RAFT(), ReinforcePPBaseline()]


@pytest.mark.parametrize("estimator", GROUPED, ids=str)
def test_a_group_of_one_is_an_error(estimator):
    with pytest.raises(SpecError, match="samples_per_prompt: 2 or more"):
        estimator.estimate(batch(groups=(0, 0, 0, 1, 1, 2)), {})
    with pytest.raises(ValueError, match="samples_per_prompt: 2 or more"):
        component("stage", {"name": "rl", "critic": "none", "objective": ["policy_gradient"], "advantage": estimator.name})


@pytest.mark.parametrize("estimator", ["td0", "n_step", "normalized_clipped"])
def test_what_needs_values_needs_a_critic(estimator):
    with pytest.raises(ValueError, match=f"{estimator} need values, but critic is 'none'"):
        component("stage", {"name": "rl", "critic": "none", "objective": ["policy_gradient"], "advantage": estimator})


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "grpo", "eps": 0},
        {"name": "reinforce_baseline", "decay": 1.0},
        {"name": "reinforce_pp", "ddof": 2},
        {"name": "n_step", "n": 0},
        {"name": "td0", "gamma": 1.1},
        {"name": "normalized_clipped", "clip": 0},
        {"name": "normalized_clipped", "source": "nobody"},
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError):
        component("advantage", wrong)


CLIPPED = {"name": "normalized_clipped", "source": "rloo"}
CRITIC_FREE = ["reinforce_pp", "reinforce_baseline", *[e.name for e in GROUPED], CLIPPED]


@pytest.mark.parametrize("estimator", [*CRITIC_FREE, "td0", {"name": "n_step", "n": 3}], ids=str)
def test_each_trains_a_policy(run_stage, estimator):
    """A few steps on a reward for one word: the policy says it more often than at the start."""
    terms = ["ppo_clip"] if estimator in CRITIC_FREE else ["ppo_clip", "value_plain"]
    whiten = "none" if estimator == "raft" else "rollout"
    parameters = {"reward": "words", "advantage": estimator, "objective": terms, "samples_per_prompt": 4, "batch_size": 32,
                  "steps": 6, "inner_epochs": 2, "response_length": 4, "learning_rate": 0.01, "kl": "none",
                  "whiten_advantages": whiten, "schedule": "constant", "evaluation": {"every": 6, "samples": 4}}  # fmt: skip
    if estimator in CRITIC_FREE:
        parameters["critic"] = "none"
    first, *_, last = run_stage("rl", parameters).rows("validation")
    assert last["reward_proxy"] > first["reward_proxy"] and math.isfinite(last["kl"])


def test_remax_by_hand():
    """Token rewards 0.5, −1, 2 and a greedy score of 0.75: what follows, less 0.75; returns without the baseline."""
    inputs = one_group([0.0], lengths=[3])
    inputs = dataclasses.replace(
        inputs, rewards_BT=torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64), greedy_scores_B=torch.tensor([0.75])
    )
    got = ReMax().estimate(inputs, {})
    assert got.advantages_BT.tolist() == [[0.75, 0.25, 1.25]] and got.returns_BT.tolist() == [[1.5, 1.0, 2.0]]
    discounted = ReMax(gamma=0.5).estimate(inputs, {})
    assert discounted.advantages_BT.tolist() == [[0.5 - 0.5 + 0.5 - 0.75, -1.0 + 1.0 - 0.75, 2.0 - 0.75]]


def test_remax_is_unbiased_and_quieter_than_reinforce():
    """All responses of two enumerated worlds: E[g] is the exact gradient; less variance where scores are mostly level."""
    from rlhf_lab.proof import estimators as es

    for world in es.example_worlds().values():
        level = dataclasses.replace(world, rewards_N=world.rewards_N + 5.0)
        law, score_NTD = es.all_batches(level, 1), es.score_functions(level)
        exact_D = es.exact.policy_gradient(
            level.logprobs_SV, level.ref_logprobs_SV, level.rewards_N, level.beta, level.space
        ).flatten()
        variances = []
        for estimator in (ReMax(), MonteCarlo()):
            coefficients = es.advantages(level, estimator, "k1", level.beta, law, 0.0)
            mean_D, variance = es.moments(coefficients, score_NTD, law)
            torch.testing.assert_close(mean_D, exact_D, atol=1e-10, rtol=0)
            variances.append(variance)
        assert variances[0] < 0.2 * variances[1]


@pytest.mark.parametrize("estimator", [TD0(gamma=0.9), NStep(n=2, gamma=0.9), NStep(n=9, gamma=0.9)], ids=str)
def test_a_cut_response_goes_on_at_the_critics_value(estimator):
    """after_B = v counts like γ·v on top of the last reward, for returns and advantages, and elsewhere changes nothing."""
    plain = batch()
    after_B = torch.tensor([0.0, 2.0, 0.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    last_B1 = plain.mask_BT.sum(1, keepdim=True) - 1
    paid = dataclasses.replace(plain, rewards_BT=plain.rewards_BT.scatter_add(1, last_B1, 0.9 * after_B[:, None]))
    got, expected = estimator.estimate(dataclasses.replace(plain, after_B=after_B), {}), estimator.estimate(paid, {})
    for x, y, before in zip(got[:2], expected[:2], estimator.estimate(plain, {})[:2], strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)
        assert not torch.allclose(x, before)
