"""Credit for the best of a group alone: what it adds to the group's maximum."""

import torch

from rlhf_lab.contracts import Component, hookimpl
from rlhf_lab_plugins.advantage.whole_responses import group_sizes, returns_of, same_for_each_token


def best_without(returns_B, group_B):
    """For each sequence the largest return among the other members of its group."""
    others_BB = (group_B[:, None] == group_B[None, :]) & ~torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)
    return returns_B[None, :].expand(others_BB.shape).masked_fill(~others_BB, -torch.inf).amax(1)


class PassAtK(Component):
    """A_i = max_j r_j − max_{j≠i} r_j: r_max − r_second for the winner, 0 for all others, k = samples_per_prompt.

    The leave-one-out gradient of E[max of k samples] (pass@k where r ∈ {0, 1}). A tie for the best gives nobody credit. In
    units of the score; verl then divides by the group's standard deviation, here that is left out. Needs no critic.
    Source: Tang et al. 2025 (arXiv 2503.19595); verl `core_algos.py`, compute_grpo_passk_outcome_advantage.
    """

    kind, name, needs = "advantage", "pass_at_k", frozenset({"groups"})

    def estimate(self, batch, state):
        group_sizes(batch.group_B, self.name)
        returns_B = returns_of(batch)
        added_B = (returns_B - best_without(returns_B, batch.group_B)).clamp(min=0.0)
        return same_for_each_token(added_B, returns_B, batch)


@hookimpl
def register_components(register):
    register(PassAtK)
