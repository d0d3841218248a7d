"""The frontier: interpolation against the solved one, and the estimate from samples against the exact one."""

import numpy as np
import pytest
import torch

from rlhf_lab.errors import RewardError
from rlhf_lab.frontier import MIN_ESS, estimated_frontier, exact_frontier, from_table
from rlhf_lab.proof import exact

X, V, T = 4, 4, 3


@pytest.fixture(scope="module")
def world():
    """ref_logprobs_XN and rewards_XN of four prompts with 40 responses each, as arrays."""
    space, rng = exact.enumerate_space(V, T), np.random.default_rng(0)
    tables = [torch.from_numpy(rng.normal(size=(len(space.states), V))).log_softmax(-1) for _ in range(X)]
    ref_XN = np.stack([exact.response_logprobs(table, space).numpy() for table in tables])
    return ref_XN, rng.normal(size=ref_XN.shape)


def samples(world, n, seed):
    """Rewards of n responses to each prompt."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(r_N, n, p=np.exp(p_N)) for p_N, r_N in zip(*world, strict=True)])


def solved(world, kl):
    """The frontier by solving for β, from the enumeration."""
    return np.array([exact.frontier(*map(torch.from_numpy, world), k) for k in kl])


def test_interpolation_is_the_solved_frontier(world):
    kl = np.concatenate([[0.0, 1e-8, 1e-5], np.linspace(0.001, 2.5, 60)])
    frontier = exact_frontier(*world)
    np.testing.assert_allclose(frontier.reward_optimal_at_kl(kl), solved(world, kl), atol=1e-6)


def test_points_are_the_tilted_policies(world):
    table = exact_frontier(*world, betas=[0.2, 1.0]).table()
    ref_XN, rewards_XN = map(torch.from_numpy, world)
    for row in table.itertuples():
        best_XN = exact.optimum(ref_XN, rewards_XN, row.beta)
        assert row.kl == pytest.approx(exact.kl(best_XN, ref_XN).mean().item(), abs=1e-13)
        assert row.reward_proxy == pytest.approx(exact.expectation(best_XN, rewards_XN).mean().item(), abs=1e-13)
    assert table["beta"].tolist() == [1.0, 0.2] and np.isinf(table["ess"]).all() and (table["reward_proxy_se"] == 0).all()


def test_bandit_numbers():
    """FACTS §3: at β = 1 KL 0.32283428 and E[r] 1.35005646, given as one prompt without its own dimension."""
    frontier = exact_frontier(np.log([0.5, 0.3, 0.2]), [0.0, 1.0, 2.0])
    assert frontier.reward_optimal_at_kl(0.32283428) == pytest.approx(1.35005646, abs=1e-7)
    assert frontier.gap(0.32283428, 1.0) == pytest.approx(0.35005646, abs=1e-7)


def test_estimate_agrees_with_the_exact_frontier(world):
    """40 times 400 samples a prompt: the mean error is within 4 of its standard errors, its spread what is claimed."""
    kl = np.array([0.05, 0.2, 0.5, 0.8])
    runs = [estimated_frontier(samples(world, 400, seed)) for seed in range(40)]
    errors = np.array([run.reward_optimal_at_kl(kl) for run in runs]) - solved(world, kl)
    claimed = np.mean([[run.reward_se_J[np.searchsorted(run.kl_J, k)] for k in kl] for run in runs], axis=0)
    assert np.isfinite(errors).all()
    assert (np.abs(errors.mean(0)) < 4 * errors.std(0, ddof=1) / np.sqrt(40)).all()
    np.testing.assert_allclose(errors.std(0, ddof=1), claimed, rtol=0.45)


def test_estimate_is_blank_where_few_samples_count(world):
    """And only there: the threshold moves the end of the estimate."""
    rewards = samples(world, 256, 0)
    frontier, longer = estimated_frontier(rewards), estimated_frontier(rewards, min_ess=5)
    end = frontier.kl_J[-1]
    assert frontier.ess_J.min() >= MIN_ESS > 29
    assert np.isfinite(frontier.reward_optimal_at_kl([0.0, end / 2, end - 1e-9])).all()
    assert np.isnan(frontier.reward_optimal_at_kl([end + 1e-6, 10.0, np.nan])).all()
    assert longer.kl_J[-1] > end + 0.1 and np.isnan(longer.reward_optimal_at_kl(10.0))
    assert np.isnan(estimated_frontier(rewards, min_ess=300).reward_optimal_at_kl(0.01))


def test_ess_is_that_of_the_weights():
    """By hand: rewards 0 and log 3 at β = 1 have weights 1/4 and 3/4, so ESS = 1/(1/16 + 9/16) = 1.6; of 4 samples 3.2."""
    frontier = estimated_frontier([[0.0, np.log(3)] * 2], betas=[1.0], min_ess=1)
    assert frontier.ess_J.tolist() == pytest.approx([3.2])
    assert frontier.kl_J.tolist() == pytest.approx([0.25 * np.log(0.5) + 0.75 * np.log(1.5)])
    variance = 1 / 3.2 - 1 / 4
    assert frontier.reward_J.tolist() == pytest.approx([0.75 * np.log(3) + variance / 2])
    assert frontier.reward_se_J.tolist() == pytest.approx([np.sqrt(variance)])


def test_gaussian_rewards():
    """For r ~ N(0, 1) the frontier is √(2 KL), whatever the number of prompts."""
    kl = np.array([0.1, 0.5, 1.0])
    frontier = estimated_frontier(np.random.default_rng(0).standard_normal((64, 1024)))
    at = np.searchsorted(frontier.kl_J, kl)
    errors = frontier.reward_optimal_at_kl(kl) - np.sqrt(2 * kl)
    assert (np.abs(errors) < 3 * frontier.reward_se_J[at]).all() and (frontier.reward_se_J[at] < 0.01).all()


def test_negative_estimates_of_kl_count_as_zero_and_constant_rewards_leave_nothing_to_gain(world):
    frontier = exact_frontier(*world)
    assert frontier.reward_optimal_at_kl(-0.1) == pytest.approx(np.sum(np.exp(world[0]) * world[1]) / X)
    flat = estimated_frontier(np.ones((2, 64)))
    assert flat.reward_optimal_at_kl(0.0) == pytest.approx(1.0) and np.isnan(flat.reward_optimal_at_kl(0.1))


def test_a_table_holds_the_whole_frontier(world):
    kl = [0.0, 1e-4, 0.1, 0.5, 2.0, 50.0]
    for frontier in (exact_frontier(*world), estimated_frontier(samples(world, 256, 0))):
        again = from_table(frontier.table())
        np.testing.assert_allclose(again.reward_optimal_at_kl(kl), frontier.reward_optimal_at_kl(kl), atol=1e-5)
    empty = from_table(estimated_frontier(samples(world, 256, 0), min_ess=300).table())
    assert np.isnan(empty.reward_optimal_at_kl(kl)).all()


def test_rewards_must_be_finite():
    with pytest.raises(RewardError, match="finite"):
        estimated_frontier([[0.0, np.nan]])
