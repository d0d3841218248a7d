"""The bias–variance table reproduces what is known about policy gradients and about KL estimators."""

import math

import numpy as np
import pytest
import torch

from rlhf_lab.contracts import Component, Estimate, hookimpl, param
from rlhf_lab.proof import estimators as es
from rlhf_lab.proof import exact
from rlhf_lab.registry import discover
from rlhf_lab_plugins.advantage.gae import GAE
from rlhf_lab_plugins.advantage.rloo import RLOO

ONE, MANY = es.example_worlds()
ZERO = 1e-9


class StdNormalised(Component):
    """A_i = (r_i − mean) / (s + 1e-4), s the sample standard deviation of the group (Shao et al. 2024)."""

    kind, name, needs = "advantage", "std_normalised", frozenset({"groups"})

    def estimate(self, batch, state):
        returns_B = batch.rewards_BT.sum(1)
        advantages_B = (returns_B - returns_B.mean()) / (returns_B.std() + 1e-4)
        return Estimate(advantages_B[:, None] * batch.mask_BT, batch.rewards_BT)


class GreedyBaseline(Component):
    """A = r(y) − r(greedy response) (Li et al. 2024, ReMax)."""

    kind, name, needs = "advantage", "greedy_baseline", frozenset({"greedy_scores"})

    def estimate(self, batch, state):
        advantages_B = batch.rewards_BT.sum(1) - batch.greedy_scores_B
        return Estimate(advantages_B[:, None] * batch.mask_BT, batch.rewards_BT)


class NeedsMore(Component):
    """Asks for what the table has not."""

    kind, name, needs = "advantage", "needs_more", frozenset({"moon_phase"})

    def estimate(self, batch, state):
        raise AssertionError("must not be called")


class HasNoDefault(Component):
    """Cannot be made without a parameter."""

    kind, name = "advantage", "has_no_default"
    gamma: float = param(..., "discount")

    def estimate(self, batch, state):
        raise AssertionError("must not be called")


@hookimpl
def register_components(register):
    for component in (StdNormalised, GreedyBaseline, NeedsMore, HasNoDefault):
        register(component)


@pytest.fixture(scope="module")
def measured():
    import sys

    registry = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    registry.add_module(sys.modules[__name__], "test", "0")
    return es.estimator_table(registry)


@pytest.fixture(scope="module")
def table(measured):
    return measured.set_index(["world", "advantage", "critic", "kl", "placement"]).sort_index()


def cells(table, world=None, advantage=None, critic=None, kl=None, placement=None):
    wanted = {"world": world, "advantage": advantage, "critic": critic, "kl": kl, "placement": placement}
    given = {key: value for key, value in wanted.items() if value is not None}
    found = table.xs(tuple(given.values()), level=tuple(given), drop_level=False)
    assert len(found)
    return found[found["bias"].notna()]


# The advantage, with the KL as k1 in the reward


@pytest.mark.parametrize("world", [ONE, MANY])
@pytest.mark.parametrize("advantage, critic", [
    ("monte_carlo", "none"), ("rloo", "none"), ("greedy_baseline", "none"), ("gae, λ = 1", "exact"), ("gae, λ = 1", "wrong"),
    ("gae, λ = 0.95", "exact"), ("gae, λ = 0", "exact"),
])  # fmt: skip
def test_unbiased_estimators(table, world, advantage, critic):
    """A baseline that does not depend on the action changes nothing; nor does λ where the critic is right."""
    row = table.loc[world, advantage, critic, "k1", "reward"]
    assert row["bias"] < ZERO and row["kl_bias"] < ZERO
    assert row["cosine"] == pytest.approx(1, abs=ZERO) and row["kl_share"] == pytest.approx(1, abs=ZERO)


def test_bootstrapping_from_a_wrong_critic_is_biased_the_more_the_smaller_lambda(table):
    bias = [table.loc[MANY, f"gae, λ = {lam}", "wrong", "k1", "reward"]["bias"] for lam in ("0", "0.95", "1")]
    assert bias[0] > 3 * bias[1] > 0.03 and bias[2] < ZERO


def test_where_there_is_one_token_a_critic_is_a_baseline(table):
    """A response of one token has no later state to bootstrap from."""
    assert (cells(table, ONE, critic="wrong", kl="k1", placement="reward").filter(like="gae", axis=0)["bias"] < ZERO).all()


@pytest.mark.parametrize("world", [ONE, MANY])
def test_std_normalised_groups_point_elsewhere(table, world):
    """Not a matter of scale: the direction is another (FACTS §3)."""
    row = table.loc[world, "std_normalised", "none", "k1", "reward"]
    assert row["cosine"] < 0.98 and row["bias"] > 0.1


@pytest.mark.parametrize("world", [ONE, MANY])
def test_kl_in_the_reward_all_but_vanishes_under_std_normalisation_of_two(table, world):
    """Of two samples only the order counts."""
    assert abs(table.loc[world, "std_normalised", "none", "k1", "reward"]["kl_share"]) < 0.6


def test_exact_critic_has_less_variance_than_none(table):
    """And λ = 0 less than λ = 1 where the critic is right."""
    variance = table.xs(("k1", "reward"), level=("kl", "placement"))["variance"]
    assert variance[MANY, "gae, λ = 0", "exact"] < variance[MANY, "gae, λ = 1", "exact"] < variance[MANY, "monte_carlo", "none"]
    assert variance[ONE, "gae, λ = 1", "exact"] < variance[ONE, "rloo", "none"]


# The KL


def test_k1_in_the_loss_has_no_gradient_on_average(table):
    """E[∇ log π] = 0: whatever the estimator, nothing is regularised, but there is noise."""
    rows = cells(table, kl="k1", placement="loss")
    assert (rows["kl_share"].abs() < ZERO).all() and np.allclose(rows["kl_bias"], 1, atol=ZERO)
    assert table.loc[ONE, "gae, λ = 1", "exact", "k1", "loss"]["bias"] > 0.1


def test_k2_in_the_loss_is_the_kl_gradient_for_one_token_only(table):
    """For more it misses that a token changes which states come later (Tang & Munos 2025)."""
    assert (cells(table, ONE, kl="k2", placement="loss")["kl_bias"] < ZERO).all()
    assert (cells(table, MANY, kl="k2", placement="loss")["kl_bias"] > 0.05).all()


@pytest.mark.parametrize("kl", ["k2", "k3", "abs"])
@pytest.mark.parametrize("world", [ONE, MANY])
def test_other_estimators_in_the_reward_are_biased(table, world, kl):
    """Where k1 is right, they are not: k3 in the reward is one of TRL's options."""
    assert table.loc[world, "monte_carlo", "none", kl, "reward"]["kl_bias"] > 0.1


def test_k3_and_abs_in_the_loss_are_biased(table):
    for kl in ("k3", "abs"):
        assert (cells(table, kl=kl, placement="loss")["kl_bias"] > 0.05).all()


def test_k3_in_the_loss_has_the_gradient_of_the_forward_kl():
    """∇ Σ_v ref(v) log(ref(v)/π(v)) = π − ref by the logits, for one token."""
    world = es.random_world(4, 1)
    law = es.all_batches(world, 2)
    coefficients_MGT = es.loss_coefficients(world, "k3", 0.7)[law.batches_MG]
    mean_D, _ = es.moments(coefficients_MGT, es.score_functions(world), law)
    expected = -0.7 * (world.logprobs_SV.exp() - world.ref_logprobs_SV.exp())
    torch.testing.assert_close(mean_D, expected.flatten(), rtol=1e-10, atol=1e-13)


def test_the_exact_kl_of_each_state(table):
    """In the reward a token does not pay for itself: where there is one, nobody pays. In the loss it is the gradient of the KL
    for one token, without any noise of the KL's own; for more it misses, as k2 does, which states come later.
    """
    assert np.allclose(cells(table, ONE, kl="full", placement="reward")["kl_share"].abs().dropna(), 0, atol=ZERO)
    assert (cells(table, MANY, kl="full", placement="reward")["kl_bias"] > 0.1).all()
    assert (cells(table, ONE, kl="full", placement="loss")["kl_bias"] < ZERO).all()
    full, k2 = (cells(table, MANY, kl=kl, placement="loss")["kl_bias"].to_numpy() for kl in ("full", "k2"))
    np.testing.assert_allclose(full, k2, atol=ZERO)


def test_the_gradient_of_the_exact_kl_is_that_of_autograd():
    """Σ_t KL(s_t) of each response, differentiated by the logits."""
    world = es.random_world(3, 2)
    logits_SV = world.logprobs_SV.clone().requires_grad_()
    logprobs_SV = logits_SV.log_softmax(-1)
    kl_S = (logprobs_SV.exp() * (logprobs_SV - world.ref_logprobs_SV)).sum(-1)
    for n, y in enumerate(world.space.responses):
        visited = sum(kl_S[world.space.states.index(y[:t])] for t in range(len(y)))
        (expected,) = torch.autograd.grad(-0.7 * visited, logits_SV, retain_graph=True)
        torch.testing.assert_close(es.full_loss_gradients(world, 0.7)[n], expected.flatten())


def test_registered_group_methods_show_the_known_facts(table):
    """GRPO is not proportional to the true gradient, RLOO and ReMax are unbiased, Dr. GRPO is RLOO times (G − 1)/G."""
    names = table.index.get_level_values("advantage")
    for world in (ONE, MANY):
        assert table.loc[world, "grpo", "none", "k1", "reward"]["cosine"] < 0.98
        half = table.loc[world, "dr_grpo", "none", "k1", "reward"]
        assert half["bias"] == pytest.approx(0.5, abs=ZERO) and half["cosine"] == pytest.approx(1, abs=ZERO)
        if "remax" in names:
            assert table.loc[world, "remax", "none", "k1", "reward"]["bias"] < ZERO


# The machinery


def test_score_functions_are_the_gradients_of_log_probabilities():
    world = es.random_world(3, 3)
    for n in range(len(world.space.responses)):
        logits_SV = world.logprobs_SV.clone().requires_grad_()
        exact.response_logprobs(logits_SV.log_softmax(-1), world.space)[n].backward()
        torch.testing.assert_close(es.score_functions(world)[n].sum(0), logits_SV.grad.flatten())


@pytest.mark.parametrize("estimator", [RLOO(), GAE(lam=0.5)])
def test_moments_are_those_of_sampled_batches(estimator):
    """30 000 batches drawn at random: mean and variance within their sampling errors."""
    world = es.random_world(3, 2)
    law, score_NTD = es.all_batches(world, 2), es.score_functions(world)
    coefficients_MGT = es.advantages(world, estimator, "k1", world.beta, law, 1.0)
    mean_D, variance = es.moments(coefficients_MGT, score_NTD, law)
    p = law.probability_M.numpy()
    drawn = np.random.default_rng(0).choice(len(p), 30_000, p=p / p.sum())
    gradients = np.zeros((len(drawn), mean_D.numel()))
    for g in range(2):
        for t in range(2):
            weight = coefficients_MGT[drawn, g, t].numpy()[:, None]
            gradients += weight * score_NTD[law.batches_MG[drawn, g], t].numpy() / 2
    error = gradients.std(0) / math.sqrt(len(drawn))
    assert (np.abs(gradients.mean(0) - mean_D.numpy()) < 4.5 * error + 1e-12).all()
    squares = ((gradients - gradients.mean(0)) ** 2).sum(1)
    assert squares.mean() == pytest.approx(variance, abs=4.5 * squares.std() / math.sqrt(len(drawn)))


def test_variance_halves_with_twice_the_batch():
    """Monte Carlo gradients of a batch are means of independent ones."""
    from rlhf_lab_plugins.advantage.monte_carlo import MonteCarlo

    world, found = es.random_world(3, 2), []
    for group in (1, 2, 4):
        law = es.all_batches(world, group)
        coefficients_MGT = es.advantages(world, MonteCarlo(), "k1", world.beta, law, 0.0)
        found.append(es.moments(coefficients_MGT, es.score_functions(world), law))
    assert found[0][1] == pytest.approx(2 * found[1][1], rel=1e-10) == pytest.approx(4 * found[2][1], rel=1e-10)
    torch.testing.assert_close(found[0][0], found[2][0])


def test_rloo_baseline_shrinks_to_the_group_mean():
    """RLOO = G/(G−1) · (r − mean): a group of 3 has 2/3 of its gradient without the factor."""
    world = es.random_world(3, 1)
    law, score_NTD = es.all_batches(world, 3), es.score_functions(world)
    mean_D, _ = es.moments(es.advantages(world, RLOO(), "k1", 0.0, law, 0.0), score_NTD, law)
    expected = exact.policy_gradient(world.logprobs_SV, world.ref_logprobs_SV, world.rewards_N, 0.0, world.space)
    torch.testing.assert_close(mean_D, expected.flatten())
    centred_MGT = (world.rewards_N[law.batches_MG] - world.rewards_N[law.batches_MG].mean(1, keepdim=True))[..., None]
    torch.testing.assert_close(es.moments(centred_MGT, score_NTD, law)[0], mean_D * 2 / 3)


def test_greedy_response_takes_the_likeliest_tokens():
    world = es.random_world(3, 3)
    prefix = ()
    while prefix not in world.space.responses:
        prefix += (int(world.logprobs_SV[world.space.states.index(prefix)].argmax()),)
    assert world.space.responses[es.greedy_response(world)] == prefix


def test_every_registered_estimator_has_its_rows(table):
    names = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""}).names("advantage")
    listed = {label.split(",")[0] for label in table.index.get_level_values("advantage")}
    assert listed == {*names, "std_normalised", "greedy_baseline", "needs_more", "has_no_default"}
    assert table.index.is_unique


def test_what_cannot_be_measured_is_blank(table):
    for name in ("needs_more", "has_no_default"):
        assert table.xs(name, level="advantage").isna().all(axis=None)


def test_markdown_shows_exact_zeros_and_every_estimator(measured):
    text = es.markdown(measured)
    assert "| monte_carlo | none | 0 / 1 / " in text
    assert "| k1 in reward | 1 | 0 |" in text and "| k1 in loss | 0 | 1 |" in text
    assert "| needs_more | none | – / – / – |" in text
    assert text.count("### ") == 2
