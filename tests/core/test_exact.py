"""The exact world against closed forms, brute force over strings, and identities of regularised reinforcement learning."""

import itertools
import math

import numpy as np
import pytest
import torch

from rlhf_lab.errors import DataError
from rlhf_lab.proof import exact

BETAS = (0.1, 0.5, 2.0)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# FACTS §3: a bandit with three arms.
BANDIT, BANDIT_REWARDS = tensor(0.5, 0.3, 0.2).log(), tensor(0.0, 1.0, 2.0)


def random_world(seed=0, vocabulary=3, length=3, ties=False):
    """Tables of a policy and a reference, and rewards, which are whole numbers with `ties`."""
    space, rng = exact.enumerate_space(vocabulary, length), np.random.default_rng(seed)
    shape = len(space.states), vocabulary
    policy_SV, ref_SV = (torch.from_numpy(rng.normal(size=shape)).log_softmax(-1) for _ in range(2))
    rewards_N = torch.from_numpy(rng.normal(size=len(space.responses)))
    return space, policy_SV, ref_SV, rewards_N.round() if ties else rewards_N


def responses_by_hand(vocabulary, length):
    """Every string of `length` tokens, cut after its first EOS (token 0)."""
    strings = itertools.product(range(vocabulary), repeat=length)
    return {y[: y.index(0) + 1] if 0 in y else y for y in strings}


def probability_by_hand(logprobs_SV, space, y):
    """Π_t π(y_t | y_<t)."""
    return math.prod(logprobs_SV[space.states.index(y[:t]), y[t]].exp().item() for t in range(len(y)))


# The space of responses


@pytest.mark.parametrize("vocabulary, length", [(2, 1), (2, 4), (3, 3), (4, 2), (8, 4)])
def test_every_response_is_there_once(vocabulary, length):
    space = exact.enumerate_space(vocabulary, length)
    assert len(space.responses) == len(set(space.responses))
    assert set(space.responses) == responses_by_hand(vocabulary, length)
    assert len(space.states) == sum((vocabulary - 1) ** n for n in range(length))


def test_tokens_masks_and_states_are_those_of_the_responses():
    space = exact.enumerate_space(3, 3)
    for n, y in enumerate(space.responses):
        assert space.token_NT[n][space.mask_NT[n]].tolist() == list(y)
        assert space.mask_NT[n].tolist() == [t < len(y) for t in range(3)]
        assert [space.states[s] for s in space.state_NT[n, : len(y)].tolist()] == [y[:t] for t in range(len(y))]
        assert space.ended_N[n].item() == (y[-1] == 0)


def test_next_leads_to_the_longer_prefix():
    space = exact.enumerate_space(3, 2)
    for s, prefix in enumerate(space.states):
        for v in range(3):
            place = space.next_SV[s, v].item()
            there = space.states[place] if place < len(space.states) else space.responses[place - len(space.states)]
            assert there == (*prefix, v)


def test_another_eos():
    space = exact.enumerate_space(3, 2, eos=2)
    assert set(space.responses) == {(2,), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}
    assert [y for y, ended in zip(space.responses, space.ended_N, strict=True) if ended] == [(2,), (0, 2), (1, 2)]


@pytest.mark.parametrize("vocabulary, length", [(9, 2), (1, 2), (3, 5), (3, 0)])
def test_too_large_worlds_are_refused(vocabulary, length):
    with pytest.raises(DataError, match="only worlds of 2 to 8 tokens"):
        exact.enumerate_space(vocabulary, length)


def test_context_codes_number_all_strings():
    strings = [s for n in range(4) for s in itertools.product(range(3), repeat=n)]
    assert [exact.context_code(s, 3) for s in strings] == list(range(1 + 3 + 9 + 27)) == list(range(exact.n_contexts(3, 3)))


# Laws


def test_response_probabilities_are_products_and_sum_to_one():
    space, policy_SV, _, _ = random_world()
    p_N = exact.response_logprobs(policy_SV, space).exp()
    assert p_N.tolist() == pytest.approx([probability_by_hand(policy_SV, space, y) for y in space.responses], rel=1e-12)
    assert p_N.sum().item() == pytest.approx(1, abs=1e-14)


def test_tabulate_asks_for_each_state():
    space, policy_SV, _, _ = random_world()
    assert torch.equal(exact.tabulate(lambda prefix: policy_SV[space.states.index(prefix)], space), policy_SV)


def test_conditionals_undo_the_product():
    space, policy_SV, _, _ = random_world(vocabulary=4)
    torch.testing.assert_close(exact.conditionals(exact.response_logprobs(policy_SV, space), space), policy_SV)


def test_conditionals_of_a_law_with_zeros():
    """All on one response: its tokens have probability 1; states that are never reached have a uniform row."""
    space = exact.enumerate_space(3, 2)
    logprobs_N = torch.full((len(space.responses),), -math.inf, dtype=torch.float64)
    logprobs_N[space.responses.index((1, 0))] = 0.0
    table_SV = exact.conditionals(logprobs_N, space).exp()
    assert table_SV[space.states.index(())].tolist() == [0, 1, 0]
    assert table_SV[space.states.index((1,))].tolist() == [1, 0, 0]
    assert table_SV[space.states.index((2,))].tolist() == pytest.approx([1 / 3] * 3)


def test_kl_is_the_sum_of_the_kl_at_each_state():
    """Chain rule (Cover & Thomas, theorem 2.5.3): KL = Σ_s d(s) KL(π(·|s) ‖ ref(·|s))."""
    space, policy_SV, ref_SV, _ = random_world()
    whole = exact.kl(exact.response_logprobs(policy_SV, space), exact.response_logprobs(ref_SV, space))
    at_state_S = (policy_SV.exp() * (policy_SV - ref_SV)).sum(-1)
    assert (exact.state_probabilities(policy_SV, space) @ at_state_S).item() == pytest.approx(whole.item(), rel=1e-13)


def test_state_probabilities_are_those_of_the_responses_that_pass():
    space, policy_SV, _, _ = random_world()
    for s, prefix in enumerate(space.states):
        through = [probability_by_hand(policy_SV, space, y) for y in space.responses if y[: len(prefix)] == prefix]
        assert exact.state_probabilities(policy_SV, space)[s].item() == pytest.approx(sum(through), rel=1e-12)


def test_kl_of_a_law_with_zeros():
    half = tensor(0.5, 0.5, 0.0).log()
    assert exact.kl(half, tensor(0.25, 0.25, 0.5).log()).item() == pytest.approx(math.log(2), rel=1e-14)


# Values and gradients


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_values_are_conditional_expectations(beta):
    """V(s) = E[return from s on | s], over the responses that pass through s; Q likewise after the token."""
    space, policy_SV, ref_SV, rewards_N = random_world()
    V_S, Q_SV = exact.values(policy_SV, rewards_N, space, -beta * (policy_SV - ref_SV))

    def to_go(y, t):
        states = [space.states.index(y[:k]) for k in range(t, len(y))]
        costs = [(policy_SV - ref_SV)[s, v].item() for s, v in zip(states, y[t:], strict=True)]
        return rewards_N[space.responses.index(y)].item() - beta * sum(costs)

    def mean(prefix, t):
        through = [y for y in space.responses if y[: len(prefix)] == prefix]
        p = [probability_by_hand(policy_SV, space, y) for y in through]
        return sum(a * to_go(y, t) for a, y in zip(p, through, strict=True)) / sum(p)

    for s, prefix in enumerate(space.states):
        assert V_S[s].item() == pytest.approx(mean(prefix, len(prefix)), abs=1e-12)
        for v in range(3):
            assert Q_SV[s, v].item() == pytest.approx(mean((*prefix, v), len(prefix)), abs=1e-12)


def test_objective_is_the_value_of_the_first_state():
    space, policy_SV, ref_SV, rewards_N = random_world()
    V_S, _ = exact.values(policy_SV, rewards_N, space, -0.3 * (policy_SV - ref_SV))
    assert exact.objective(policy_SV, ref_SV, rewards_N, 0.3, space).item() == pytest.approx(V_S[0].item(), abs=1e-13)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gradient_is_that_of_the_policy_gradient_theorem(beta):
    """∂J/∂logits(s, v) = d(s) π(v|s) A(s, v) for softmax tables (Sutton et al. 2000, theorem 1)."""
    space, policy_SV, ref_SV, rewards_N = random_world()
    V_S, Q_SV = exact.values(policy_SV, rewards_N, space, -beta * (policy_SV - ref_SV))
    expected = exact.state_probabilities(policy_SV, space)[:, None] * policy_SV.exp() * (Q_SV - V_S[:, None])
    gradient = exact.policy_gradient(policy_SV, ref_SV, rewards_N, beta, space)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


def test_gradient_is_that_of_finite_differences():
    space, policy_SV, ref_SV, rewards_N = random_world()
    gradient = exact.policy_gradient(policy_SV, ref_SV, rewards_N, 0.5, space)
    for s, v in itertools.product(range(len(space.states)), range(3)):
        up, down = policy_SV.clone(), policy_SV.clone()
        up[s, v] += 1e-5
        down[s, v] -= 1e-5
        J = [exact.objective(x.log_softmax(-1), ref_SV, rewards_N, 0.5, space).item() for x in (up, down)]
        assert gradient[s, v].item() == pytest.approx((J[0] - J[1]) / 2e-5, abs=1e-9)


# The optimum


def test_bandit_numbers():
    best = exact.optimum(BANDIT, BANDIT_REWARDS, 1.0)
    assert best.exp().tolist() == pytest.approx([0.17900002, 0.29194350, 0.52905648], abs=1e-8)
    assert exact.expectation(best, BANDIT_REWARDS).item() == pytest.approx(1.35005646, abs=1e-8)
    assert exact.kl(best, BANDIT).item() == pytest.approx(0.32283428, abs=1e-8)
    assert exact.optimal_objective(BANDIT, BANDIT_REWARDS, 1.0).item() == pytest.approx(1.02722218, abs=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_every_policy_falls_short_by_beta_times_its_kl_from_the_optimum(beta):
    """J(π) = J* − β KL(π‖π*)."""
    space, policy_SV, ref_SV, rewards_N = random_world()
    ref_N, policy_N = exact.response_logprobs(ref_SV, space), exact.response_logprobs(policy_SV, space)
    short = beta * exact.kl(policy_N, exact.optimum(ref_N, rewards_N, beta)).item()
    best = exact.optimal_objective(ref_N, rewards_N, beta).item()
    assert exact.objective(policy_SV, ref_SV, rewards_N, beta, space).item() == pytest.approx(best - short, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_token_level_recursion_gives_the_same_optimum(beta):
    space, _, ref_SV, rewards_N = random_world()
    ref_N = exact.response_logprobs(ref_SV, space)
    V_S, best_SV = exact.soft_values(ref_SV, rewards_N, beta, space)
    torch.testing.assert_close(exact.response_logprobs(best_SV, space), exact.optimum(ref_N, rewards_N, beta))
    torch.testing.assert_close(best_SV, exact.conditionals(exact.optimum(ref_N, rewards_N, beta), space))
    assert V_S[0].item() == pytest.approx(exact.optimal_objective(ref_N, rewards_N, beta).item(), abs=1e-12)
    gradient = exact.policy_gradient(best_SV, ref_SV, rewards_N, beta, space)
    assert gradient.abs().max().item() < 1e-13


# The frontier


@pytest.mark.parametrize("beta", [0.01, *BETAS, 50.0])
def test_the_frontier_passes_through_every_optimum(beta):
    space, _, ref_SV, rewards_N = random_world()
    ref_N = exact.response_logprobs(ref_SV, space)
    best_N = exact.optimum(ref_N, rewards_N, beta)
    expected = exact.expectation(best_N, rewards_N).item()
    assert exact.frontier(ref_N, rewards_N, exact.kl(best_N, ref_N).item()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_its_slope_is_beta(beta):
    """dE[r]/dKL = β."""
    at = exact.kl(exact.optimum(BANDIT, BANDIT_REWARDS, beta), BANDIT).item()
    step = 1e-7
    slope = (exact.frontier(BANDIT, BANDIT_REWARDS, at + step) - exact.frontier(BANDIT, BANDIT_REWARDS, at - step)) / (2 * step)
    assert slope == pytest.approx(beta, rel=1e-5)


def test_no_random_policy_lies_above_it_and_some_come_near():
    """Also for two prompts, whose mean KL and reward count."""
    space, _, ref_SV, rewards_N = random_world()
    _, _, other_SV, other_rewards_N = random_world(seed=1)
    ref_XN = torch.stack([exact.response_logprobs(table, space) for table in (ref_SV, other_SV)])
    rewards_XN, rng, gaps = torch.stack([rewards_N, other_rewards_N]), np.random.default_rng(2), []
    for _ in range(200):
        tilt = rng.exponential() * rewards_XN + rng.exponential() * torch.from_numpy(rng.normal(size=rewards_XN.shape))
        policy_XN = (ref_XN + tilt).log_softmax(-1)
        at, reward = exact.kl(policy_XN, ref_XN).mean().item(), exact.expectation(policy_XN, rewards_XN).mean().item()
        gaps.append(exact.frontier(ref_XN, rewards_XN, at) - reward)
    assert -1e-12 < min(gaps) < 0.02


def test_two_prompts_share_one_beta():
    """Allocating the KL with one β for both is better than the same KL for each."""
    ref_XN, rewards_XN = torch.stack([BANDIT, BANDIT]), torch.stack([BANDIT_REWARDS, 3 * BANDIT_REWARDS])
    best_XN = exact.optimum(ref_XN, rewards_XN, 1.0)
    at = exact.kl(best_XN, ref_XN).mean().item()
    shared = exact.frontier(ref_XN, rewards_XN, at)
    assert shared == pytest.approx(exact.expectation(best_XN, rewards_XN).mean().item(), abs=1e-12)
    apart = [exact.frontier(BANDIT, rewards_N, at) for rewards_N in rewards_XN]
    assert shared > np.mean(apart) + 0.01


def test_ends_of_the_frontier():
    """At KL 0 the mean 0.7 of the reference; from −log 0.2 on the best arm alone; NaN never."""
    assert exact.frontier(BANDIT, BANDIT_REWARDS, 0.0) == pytest.approx(0.7, abs=1e-15)
    assert exact.greatest_kl(BANDIT, BANDIT_REWARDS) == pytest.approx(-math.log(0.2), rel=1e-14)
    assert exact.frontier(BANDIT, BANDIT_REWARDS, -math.log(0.2)) == exact.frontier(BANDIT, BANDIT_REWARDS, 50.0) == 2.0
    assert 2.0 - 1e-6 < exact.frontier(BANDIT, BANDIT_REWARDS, -math.log(0.2) - 1e-8) <= 2.0
    # R = 0.7 + √(2 Var r · KL) for small KL, with Var r = 1.1 − 0.49
    assert exact.frontier(BANDIT, BANDIT_REWARDS, 1e-10) - 0.7 == pytest.approx(math.sqrt(2 * 0.61 * 1e-10), rel=1e-4)


def test_ties_at_the_top_and_constant_rewards():
    """Two best arms of 0.3 and 0.2 are had at −log 0.5; a constant reward at no KL at all."""
    assert exact.greatest_kl(BANDIT, tensor(0.0, 1.0, 1.0)) == pytest.approx(math.log(2), rel=1e-14)
    assert [exact.frontier(BANDIT, tensor(2.0, 2.0, 2.0), at) for at in (0.0, 0.1, 5.0)] == pytest.approx([2.0] * 3)


# Best-of-n


def best_of_n_by_hand(p, rewards, n):
    """Over all n-tuples of samples; samples with the best reward share the prize."""
    law = np.zeros(len(p))
    for draws in itertools.product(range(len(p)), repeat=n):
        best = [y for y in draws if rewards[y] == max(rewards[d] for d in draws)]
        for y in best:
            law[y] += math.prod(p[d] for d in draws) / len(best)
    return law


@pytest.mark.parametrize("rewards", [(0.0, 1.0, 2.0, 3.0), (1.0, 0.0, 1.0, 2.0), (1.0, 1.0, 1.0, 1.0)])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_best_of_n_is_the_sum_over_all_draws(rewards, n):
    p = [0.4, 0.3, 0.2, 0.1]
    law = exact.best_of_n(tensor(*p).log(), tensor(*rewards), n).exp()
    assert law.tolist() == pytest.approx(best_of_n_by_hand(p, rewards, n), abs=1e-14)


@pytest.mark.parametrize("n", [2, 16, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_best_of_n_is_a_law_within_its_bound(n, ties):
    """KL ≤ log n − (n − 1)/n (Beirami et al. 2024), and less than the frontier's reward at that KL."""
    space, _, ref_SV, rewards_N = random_world(ties=ties)
    ref_N = exact.response_logprobs(ref_SV, space)
    best_N = exact.best_of_n(ref_N, rewards_N, n)
    at = exact.kl(best_N, ref_N).item()
    assert best_N.exp().sum().item() == pytest.approx(1, abs=1e-13)
    assert 0 < at < math.log(n) - (n - 1) / n
    assert exact.expectation(best_N, rewards_N).item() <= exact.frontier(ref_N, rewards_N, at) + 1e-12


@pytest.mark.parametrize("n, expected", [(2, 0.1931471806), (16, 1.8350887222)])
def test_best_of_n_nears_its_bound_where_responses_are_many(n, expected):
    """log n − (n − 1)/n: 2801 equally likely responses without ties are nearly a continuum."""
    responses = 2801
    ref_N = torch.full((responses,), -math.log(responses), dtype=torch.float64)
    at = exact.kl(exact.best_of_n(ref_N, torch.arange(responses, dtype=torch.float64), n), ref_N).item()
    assert at == pytest.approx(expected, abs=n / responses) and at < expected
