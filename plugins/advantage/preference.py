"""Online preference optimisation: pairs are sampled from the policy and ranked by the reward."""

from typing import Literal

import torch
from pydantic import model_validator

from rlhf_lab.contracts import Component, Preferences, hookimpl, param, slot
from rlhf_lab_plugins.advantage.whole_responses import group_sizes, same_for_each_token


def pair_weights(scores_B, group_B, which):
    """weight_BB of the pair (preferred, other), each untied group having 1 in all: its best against its worst, or all pairs."""
    same_BB = group_B[:, None] == group_B[None, :]
    won_BB = same_BB & (scores_B[:, None] > scores_B[None, :])
    if which == "best_worst":
        won_BB &= ~won_BB.any(0)[:, None] & ~won_BB.any(1)[None, :]
    number_B = same_BB.double() @ won_BB.double().sum(1)
    return won_BB / number_B[:, None].clamp(min=1)


class PreferencePairs(Component):
    """A_i = −B · ∂L/∂ log π(y_i), L a preference loss on pairs of samples, the mean over the prompts: online DPO, IPO, ….

    A preference loss knows a response by its log-prob alone, so by the chain rule its gradient *is* a policy gradient with
    this advantage, and rollouts, scores, evaluation, checkpoints and policies are those of every other online method: no
    loop of its own. For DPO the preferred response has β σ(−β(D_w − D_l)) (times B over the number of prompts), the other
    one its negative. Exact on policy: use `policy_gradient`, `inner_epochs: 1`, `minibatches: 1`, `kl: none` (the loss holds
    the policy to the reference itself), no whitening, and `aggregation: constant`, which divides the gradient by
    response_length. Ties make no pair. Needs samples_per_prompt ≥ 2.
    Source: Guo et al. 2024 (OAIF, arXiv 2402.04792), algorithm 1; TRL's OnlineDPOTrainer.
    """

    kind, name, needs = "advantage", "preference_pairs", frozenset({"groups", "logprobs"})
    loss: slot("preference_loss") = param("dpo", "what is minimised on the pairs")
    pairs: Literal["best_worst", "all"] = param("best_worst", "pairs of a prompt's samples: the best against the worst, or all")

    @model_validator(mode="after")
    def _loss_is_of_pairs(self):
        if "mismatched" in self.loss.needs:
            raise ValueError(f"{self.loss.name} is a loss of single responses; choose a loss of pairs, such as dpo or ipo")
        return self

    def estimate(self, batch, state):
        group_sizes(batch.group_B, self.name)
        weight_BB = pair_weights(batch.scores_B, batch.group_B, self.pairs)
        index_PK = weight_BB.nonzero()
        sums = [x_BT.masked_fill(~batch.mask_BT, 0.0).double().sum(1) for x_BT in (batch.logprobs_BT, batch.ref_logprobs_BT)]
        with torch.enable_grad():
            logprobs_B = sums[0].requires_grad_()
            preferred_PK = torch.tensor([[True, False]], device=index_PK.device).expand_as(index_PK)
            pairs = Preferences(
                logprobs_B[index_PK], batch.mask_BT.sum(1)[index_PK], preferred_PK, ref_logprobs_BK=sums[1][index_PK]
            )
            loss = (weight_BB[weight_BB > 0] * self.loss.losses(pairs)).sum() / len(batch.group_B.unique())
        (slope_B,) = torch.autograd.grad(loss, logprobs_B)
        return same_for_each_token(-len(slope_B) * slope_B, batch.scores_B, batch)


@hookimpl
def register_components(register):
    register(PreferencePairs)
