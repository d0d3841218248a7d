"""Reward-ranked fine-tuning: the best sample of each prompt is imitated, the others are ignored."""

from rlhf_lab.contracts import Component, hookimpl
from rlhf_lab_plugins.advantage.pass_at_k import best_without
from rlhf_lab_plugins.advantage.whole_responses import group_sizes, returns_of, same_for_each_token, sum_over_group


class RAFT(Component):
    """A_i = 1[r_i = max_j r_j] / (number of winners): with `policy_gradient` it is supervised learning on the winners.

    Each prompt has a total weight of 1; samples that tie for the best share it, which is the mean over random choices
    between them. Do not whiten these (`whiten_advantages: none`): losers would be pushed down. Needs samples_per_prompt ≥ 2
    and no critic. Source: Dong et al. 2023 (arXiv 2304.06767), algorithm 1.
    """

    kind, name, needs = "advantage", "raft", frozenset({"groups"})

    def estimate(self, batch, state):
        group_sizes(batch.group_B, self.name)
        returns_B = returns_of(batch)
        won_B = (returns_B >= best_without(returns_B, batch.group_B)).double()
        return same_for_each_token(won_B / sum_over_group(won_B, batch.group_B), returns_B, batch)


@hookimpl
def register_components(register):
    register(RAFT)
