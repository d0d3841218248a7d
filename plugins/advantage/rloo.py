"""REINFORCE with the leave-one-out mean of the group as baseline."""

import torch

from rlhf_lab.contracts import Component, Estimate, hookimpl


def leave_one_out(returns_B, group_B):
    """A_i = r_i − mean of the other members of its group (Kool et al. 2019; Ahmadian et al. 2024, eq. 8)."""
    same_BB = (group_B[:, None] == group_B[None, :]).to(returns_B.dtype)
    others_B = same_BB.sum(1) - 1
    if (others_B < 1).any():
        raise ValueError("leave-one-out needs at least 2 samples of each prompt; set samples_per_prompt: 2 or more")
    return returns_B - (same_BB @ returns_B - returns_B) / others_B


class RLOO(Component):
    """The whole response is one action: its return (score and KL together) minus the mean of its siblings' returns.

    Source: Ahmadian et al. 2024, eq. 8. Needs samples_per_prompt ≥ 2 and no critic.
    """

    kind, name, needs = "advantage", "rloo", frozenset({"groups"})

    def estimate(self, batch, state):
        returns_B = batch.rewards_BT.masked_fill(~batch.mask_BT, 0.0).sum(1)
        per_sequence_B = leave_one_out(returns_B.double(), batch.group_B).to(returns_B.dtype)
        advantages_BT = torch.where(batch.mask_BT, per_sequence_B[:, None], 0.0)
        return Estimate(advantages_BT, torch.where(batch.mask_BT, returns_B[:, None], 0.0))


@hookimpl
def register_components(register):
    register(RLOO)
