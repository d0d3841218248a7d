"""Online DPO and IPO: an advantage whose policy gradient is the gradient of the preference loss, in the loop of all others."""

import math

import pytest
import torch
from enumerated_world import DATA, RL, known
from pydantic import ValidationError
from tiny_world import component

from rlhf_lab.contracts import AdvantageInputs
from rlhf_lab.proof import exact
from rlhf_lab.rl import update
from rlhf_lab.rl.actors import open_actors
from rlhf_lab.rl.kl import sequence_kl
from rlhf_lab.rl.update import Batch
from rlhf_lab.streams import stream
from rlhf_lab_plugins.model.tabular import load_table

ONLINE = {
    "critic": "none", "kl": "none", "objective": ["policy_gradient"], "whiten_advantages": "none", "aggregation": "constant",
    "inner_epochs": 1, "minibatches": 1,
}  # fmt: skip
BETA = 0.5


def inputs(scores, log_ratios, groups, width=3):
    """Each response has its log-ratio on two tokens, half on each, and a third place that is masked."""
    mask_BT = torch.tensor([[True, True, False]] * len(scores))
    halves_BT = torch.tensor([[d / 2, d / 2, 99.0] for d in log_ratios], dtype=torch.float64)
    zeros_BT = torch.zeros_like(halves_BT)
    return AdvantageInputs(
        zeros_BT, mask_BT, torch.tensor(scores), torch.tensor(groups), mask_BT.any(1), logprobs_BT=halves_BT - 5,
        ref_logprobs_BT=zeros_BT - 5,
    )  # fmt: skip


def advantages(estimator, *args):
    """One number per response, which all of its tokens have and no masked place."""
    found_BT = component("advantage", {"name": "preference_pairs", **estimator}).estimate(inputs(*args), {}).advantages_BT
    assert torch.equal(found_BT[:, 0], found_BT[:, 1]) and (found_BT[:, 2] == 0).all()
    return found_BT[:, 0].tolist()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_two_samples_by_hand():
    """β σ(−β(D_w − D_l)), times 4 sequences over 2 prompts; the loser has the negative, and a tie says nothing."""
    found = advantages({"loss": {"name": "dpo", "beta": BETA}}, [1.0, 3.0, 2.0, 2.0], [0.4, -0.6, 1.0, 0.0], [0, 0, 1, 1])
    slope = 2 * BETA * sigmoid(-BETA * (-0.6 - 0.4))
    assert found == pytest.approx([-slope, slope, 0.0, 0.0], abs=1e-12)
    found = advantages({"loss": {"name": "ipo", "beta": BETA}}, [1.0, 3.0], [0.4, -0.6], [0, 0])
    assert found == pytest.approx([4 * (-1.0 - 1.0), -4 * (-1.0 - 1.0)], abs=1e-12)  # 2 sequences · 2 (Δ − 1/(2τ))


def test_the_best_against_the_worst_or_all_against_all():
    scores, ratios = [1.0, 3.0, 2.0], [0.2, -0.3, 0.5]
    ends = advantages({"loss": {"name": "dpo", "beta": BETA}}, scores, ratios, [0, 0, 0])
    slope = 3 * BETA * sigmoid(-BETA * (-0.3 - 0.2))
    assert ends == pytest.approx([-slope, slope, 0.0], abs=1e-12)
    pairs = {(w, n): BETA * sigmoid(-BETA * (ratios[w] - ratios[n])) for w, n in ((1, 0), (1, 2), (2, 0))}
    every = advantages({"loss": {"name": "dpo", "beta": BETA}, "pairs": "all"}, scores, ratios, [0, 0, 0])
    expected = [-pairs[1, 0] - pairs[2, 0], pairs[1, 0] + pairs[1, 2], pairs[2, 0] - pairs[1, 2]]
    assert every == pytest.approx(expected, abs=1e-12)  # 3 sequences, each of 3 pairs weighs 1/3


def test_those_that_share_the_best_score_share_the_pairs():
    found = advantages({"loss": {"name": "dpo", "beta": BETA}}, [3.0, 1.0, 3.0], [0.0, 0.0, 0.0], [0, 0, 0])
    assert found == pytest.approx([3 * BETA / 4, -3 * BETA / 2, 3 * BETA / 4], abs=1e-12)


def test_a_loss_of_single_responses_is_refused():
    with pytest.raises(ValidationError, match="kto is a loss of single responses; choose a loss of pairs"):
        component("advantage", {"name": "preference_pairs", "loss": "kto"})


@pytest.mark.parametrize("loss", [{"name": "dpo", "beta": BETA}, {"name": "ipo", "beta": BETA}], ids=["dpo", "ipo"])
def test_the_gradient_is_that_of_the_loss(open_stage, loss):
    """Through the loop's own parts, for a policy that has moved; beside autograd of the loss, written out."""
    cfg, ctx = open_stage("rl", {**ONLINE, "advantage": {"name": "preference_pairs", "loss": loss}, "reward": "words",
                                 "samples_per_prompt": 2, "batch_size": 8, "response_length": 5})  # fmt: skip
    actors, prompts = open_actors(cfg, ctx), ctx.data.prompts("train")[:4]
    with torch.no_grad():
        for number, weight in enumerate(actors.policy.module.parameters()):
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    rollout = actors.policy.rollout(prompts, stream(1, "test"), samples=2, response_length=5, temperature=1.0)
    scores_B = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0, 0.0, -1.0, 3.0])
    new_BT = actors.policy.forward(rollout, temperature=1.0).logprobs_BT
    ref_BT = actors.policy.reference_logprobs(rollout, temperature=1.0).detach()
    ratio_B = sequence_kl(new_BT, ref_BT, rollout.mask_BT)
    margins = [ratio_B[1] - ratio_B[0], ratio_B[2] - ratio_B[3], ratio_B[7] - ratio_B[6]]
    each = [-torch.nn.functional.logsigmoid(BETA * m) if loss["name"] == "dpo" else (m - 1 / (2 * BETA)) ** 2 for m in margins]
    (sum(each) / 4).backward()
    expected = [p.grad.clone() for p in actors.policy.module.parameters()]
    actors.policy.module.zero_grad()

    inputs = AdvantageInputs(
        torch.zeros_like(ref_BT), rollout.mask_BT, scores_B, rollout.group_B, rollout.ended_B,
        logprobs_BT=new_BT.detach(), ref_logprobs_BT=ref_BT,
    )  # fmt: skip
    advantages_BT, returns_BT, _ = cfg.advantage.estimate(inputs, {})
    batch = Batch(rollout, new_BT.detach(), ref_BT, advantages_BT, returns_BT, None, scores_B, 0.0)
    minibatch = update.select(cfg, batch, torch.arange(8))
    update.backward(cfg, ctx, actors, cfg.objective, rollout, minibatch, {})
    for ours, theirs in zip(actors.policy.module.parameters(), expected, strict=True):
        torch.testing.assert_close(cfg.response_length * ours.grad, theirs, atol=1e-5, rtol=1e-4)
    assert max(g.abs().max().item() for g in expected) > 0.1


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_it_learns_and_stays_under_the_frontier(run_stage, loss):
    exactly = known()
    estimator = {"name": "preference_pairs", "loss": {"name": loss, "beta": 0.3}}
    done = run_stage("rl", {**RL, **ONLINE, "advantage": estimator, "samples_per_prompt": 4, "steps": 60}, data=DATA,
                     model="tabular")  # fmt: skip
    law_XN = exactly.law(load_table(done.folder / "policy"))
    kl, reward = exactly.kl_and_reward(law_XN)
    start = exact.expectation(exactly.ref_XN, exactly.rewards_XN).mean().item()
    assert exactly.gap(law_XN) >= -1e-9 and kl > 0.2 and reward > start + 0.5
