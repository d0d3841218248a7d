"""Advantages over n steps, as in advantage actor-critic."""

import torch

from rlhf_lab.contracts import Component, Estimate, hookimpl, param


def following(x_BT, mask_BT, after_B=None):
    """x at the next response token; `after_B` or 0 after the last one, and 0 in masked places."""
    columns, next_B = [], torch.zeros_like(x_BT[:, 0]) if after_B is None else after_B
    for t in reversed(range(x_BT.shape[1])):
        columns.append(torch.where(mask_BT[:, t], next_B, 0.0))
        next_B = torch.where(mask_BT[:, t], x_BT[:, t], next_B)
    return torch.stack(columns[::-1], 1)


class NStep(Component):
    """A_t = Σ_{k<n} γ^k r_{t+k} + γ^n V_{t+n} − V_t, V = 0 after the end: G⁽⁰⁾ = V, G⁽ⁿ⁾_t = r_t + γ G⁽ⁿ⁻¹⁾_{t+1}.

    n = 1 is A2C's one-step (the TD(0) error), n ≥ length is Monte Carlo minus the value. Returns R_t = A_t + V_t.
    Needs a critic. Source: Mnih et al. 2016, section 4 (A3C; there every window of 5 steps ends at one state).
    """

    kind, name, needs = "advantage", "n_step", frozenset({"values"})
    n: int = param(1, "steps before the critic takes over", ge=1, unit="tokens", source="5 in Mnih et al. 2016, section 8")
    gamma: float = param(1.0, "discount γ", ge=0, le=1, source="0.99 in Mnih et al. 2016, section 8")

    def estimate(self, batch, state):
        rewards_BT, values_BT = (x.masked_fill(~batch.mask_BT, 0.0) for x in (batch.rewards_BT, batch.values_BT))
        returns_BT = values_BT
        for _ in range(min(self.n, rewards_BT.shape[1])):
            returns_BT = rewards_BT + self.gamma * following(returns_BT, batch.mask_BT, batch.after_B)
        return Estimate(returns_BT - values_BT, returns_BT)


@hookimpl
def register_components(register):
    register(NStep)
