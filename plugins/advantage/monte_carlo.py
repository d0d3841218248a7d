"""The return from here on, with no baseline: REINFORCE."""

import torch

from rlhf_lab.contracts import Component, Estimate, hookimpl, param


def discounted_returns(rewards_BT, mask_BT, gamma):
    """R_t = Σ_{k≥t} γ^{k−t} r_k over the response tokens, 0 in masked places (Sutton & Barto 2018, eq. 3.8)."""
    rewards_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    returns, next_B = [], torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(rewards_BT.shape[1])):
        here_B = rewards_BT[:, t] + gamma * next_B
        next_B = torch.where(mask_BT[:, t], here_B, next_B)
        returns.append(torch.where(mask_BT[:, t], here_B, 0.0))
    return torch.stack(returns[::-1], 1)


class MonteCarlo(Component):
    """A_t = Σ_{k≥t} γ^{k−t} r_k. Unbiased, with the variance of the whole return.

    Source: Williams 1992 (REINFORCE).
    """

    kind, name = "advantage", "monte_carlo"
    gamma: float = param(1.0, "discount γ", ge=0, le=1)

    def estimate(self, batch, state):
        returns_BT = discounted_returns(batch.rewards_BT, batch.mask_BT, self.gamma)
        return Estimate(returns_BT, returns_BT)


@hookimpl
def register_components(register):
    register(MonteCarlo)
