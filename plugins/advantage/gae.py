"""Generalised advantage estimation."""

import torch

from rlhf_lab.contracts import Component, Estimate, hookimpl, param


def gae(rewards_BT, values_BT, mask_BT, gamma, lam, after_B=None):
    """A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t, V = `after_B` or 0 after the end (Schulman et al. 2016, eq. 16).

    Returns advantages_BT, 0 in masked places. Masked places neither contribute nor decay.
    """
    rewards_BT, values_BT = rewards_BT.masked_fill(~mask_BT, 0.0), values_BT.masked_fill(~mask_BT, 0.0)
    advantages = []
    nothing_B = torch.zeros_like(values_BT[:, 0])
    next_value_B, next_advantage_B = nothing_B if after_B is None else after_B, nothing_B
    for t in reversed(range(rewards_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        here_B = delta_B + gamma * lam * next_advantage_B
        advantages.append(torch.where(mask_BT[:, t], here_B, 0.0))
        next_value_B = torch.where(mask_BT[:, t], values_BT[:, t], next_value_B)
        next_advantage_B = torch.where(mask_BT[:, t], here_B, next_advantage_B)
    return torch.stack(advantages[::-1], 1)


class GAE(Component):
    """Advantages from token rewards and values, exponentially weighted over horizons; returns R_t = A_t + V_t.

    Source: Schulman et al. 2016, eq. 16. Needs a critic.
    """

    kind, name, needs = "advantage", "gae", frozenset({"values"})
    gamma: float = param(1.0, "discount γ", ge=0, le=1, source="Ouyang et al. 2022, C.4")
    lam: float = param(
        0.95,
        "λ: 0 is TD(0), 1 is Monte Carlo minus the value",
        ge=0,
        le=1,
        source="Stiennon et al. 2020, B.1; Ouyang et al. 2022 prints none",
    )

    def estimate(self, batch, state):
        advantages_BT = gae(batch.rewards_BT, batch.values_BT, batch.mask_BT, self.gamma, self.lam, batch.after_B)
        return Estimate(advantages_BT, (advantages_BT + batch.values_BT).masked_fill(~batch.mask_BT, 0.0))


@hookimpl
def register_components(register):
    register(GAE)
