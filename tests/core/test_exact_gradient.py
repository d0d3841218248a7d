"""The loop's own pieces, summed over every response, give the exact policy gradient: of a table, and of a transformer.

Sampling is replaced by enumeration and nothing else: the same policy, token rewards, estimator and surrogate as in a run. What
they are held against is autograd through E[r] − β KL as a sum over strings.
"""

from pathlib import Path

import pytest
import torch
from enumerated_world import DATA, TINY, known
from tiny_world import component, context, registry

from rlhf_lab.contracts import AdvantageInputs, Minibatch
from rlhf_lab.lm.logprobs import response_logits
from rlhf_lab.proof import exact
from rlhf_lab.rl.rewards import token_rewards
from rlhf_lab_plugins.policy.causal_lm import FullPolicy

BETA = 0.3


def transformer():
    """Always the same one."""
    ctx = context("rl", {}, Path(), Path(), data=DATA, model=TINY)
    return component("model", TINY).open(ctx)[0].double()


def spread_out(model, size=0.3):
    """A policy some way off its reference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


def objective_by_strings(model, ref_N, rollout, rewards_N, space):
    """J = Σ_y π(y) (r(y) − β (log π(y) − log ref(y))), differentiable in the model's weights."""
    logprobs_NTV = response_logits(model, rollout).double().log_softmax(-1)
    chosen_NT = logprobs_NTV.gather(-1, space.token_NT[..., None]).squeeze(-1)
    logprobs_N = chosen_NT.masked_fill(~space.mask_NT, 0.0).sum(1)
    return (logprobs_N.exp() * (rewards_N - BETA * (logprobs_N - ref_N))).sum()


@pytest.mark.parametrize("advantage", ["monte_carlo", {"name": "gae", "lam": 1.0}, {"name": "gae", "lam": 0.5}])
@pytest.mark.parametrize("kind", ["tabular", "transformer"])
def test_expected_gradient_of_the_surrogate(kind, advantage, tmp_path, world):
    """Σ_y π(y) ∇ Σ_t ρ_t A_t = ∇J; for λ < 1 with exact values. In float64 (the surrogate's own sums are fp32), to 1e-6."""
    if kind == "tabular":
        table, _ = component("model", "tabular").open(context("rl", {}, tmp_path, world, data=DATA, model="tabular"))
        reference, policy_model = table, spread_out(type(table)(table.table.detach()))
    else:
        reference, policy_model = transformer(), spread_out(transformer(), 0.05)
    exactly = known(reference)
    space, rollout, rewards_N = exactly.world.space, exactly.everything[0], exactly.rewards_XN[0]
    policy = FullPolicy(policy_model, exactly.encoder, reference)

    with torch.no_grad():
        old_NT = policy.forward(rollout, temperature=1.0).logprobs_BT
        ref_NT = policy.reference_logprobs(rollout, temperature=1.0)
    kl_NT = (old_NT - ref_NT).double()
    rewards_NT = token_rewards(rewards_N, kl_NT, space.mask_NT, BETA)
    table_SV, ref_SV = (exact.next_token_logprobs(model, rollout, space) for model in (policy_model, reference))
    values_S, _ = exact.values(table_SV, rewards_N, space, -BETA * (table_SV - ref_SV))
    values_NT = values_S[space.state_NT].masked_fill(~space.mask_NT, 0.0)
    inputs = AdvantageInputs(
        rewards_NT, space.mask_NT, rewards_N, torch.arange(len(rewards_N)), space.ended_N, values_BT=values_NT
    )
    advantages_NT = component("advantage", advantage).estimate(inputs, {}).advantages_BT
    law_N = exact.response_logprobs(table_SV, space).exp()
    weights_NT = law_N[:, None] * space.mask_NT
    batch = Minibatch(
        space.mask_NT, weights_NT, weights_NT, old_NT, advantages_NT, advantages_NT, scores_B=rewards_N, beta=BETA
    )
    loss = registry().choose("objective", "ppo_clip").loss(policy.forward(rollout, temperature=1.0), batch)
    estimated = torch.autograd.grad(-loss.value, list(policy_model.parameters()))

    ref_N = exact.response_logprobs(ref_SV, space)
    true = torch.autograd.grad(
        objective_by_strings(policy_model, ref_N, rollout, rewards_N, space), list(policy_model.parameters())
    )
    size = torch.cat([g.flatten() for g in true]).norm().item()
    assert size > 0.05
    for ours, theirs in zip(estimated, true, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 * max(1.0, size), check_dtype=False)


def test_the_exact_world_is_float64():
    """Whatever the model's dtype, so that identities hold to 1e-12 and a gap of −1e-9 is a mistake."""
    exactly = known()
    space, ref_N, rewards_N = exactly.world.space, exactly.ref_XN[0], exactly.rewards_XN[0]
    table_SV = exactly.world.logprobs("a")
    V_S, Q_SV = exact.values(table_SV, rewards_N, space)
    results = [
        ref_N, table_SV, V_S, Q_SV, exact.policy_gradient(table_SV, table_SV, rewards_N, 0.5, space), exact.kl(ref_N, ref_N),
        exact.optimum(ref_N, rewards_N, 0.5), exact.optimal_objective(ref_N, rewards_N, 0.5),
        exact.best_of_n(ref_N, rewards_N, 4), exact.expectation(ref_N, rewards_N),
        *exact.soft_values(table_SV, rewards_N, 0.5, space),
    ]  # fmt: skip
    assert {result.dtype for result in results} == {torch.float64}


def test_advantages_of_the_exact_world_have_mean_zero():
    """Σ_v π(v|s) (Q(s, v) − V(s)) = 0 at every state (Sutton & Barto 2018, section 13.4)."""
    exactly = known()
    table_SV = exactly.world.logprobs("b a")
    V_S, Q_SV = exact.values(table_SV, exactly.rewards_XN[1], exactly.world.space)
    mean_S = (table_SV.exp() * (Q_SV - V_S[:, None])).sum(-1)
    assert mean_S.abs().max() < 1e-14 and (Q_SV - V_S[:, None]).abs().max() > 0.1
