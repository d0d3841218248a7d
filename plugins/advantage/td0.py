"""The one-step temporal-difference error as advantage."""

from rlhf_lab.contracts import Component, Estimate, hookimpl, param
from rlhf_lab_plugins.advantage.gae import gae


class TD0(Component):
    """A_t = δ_t = r_t + γ V_{t+1} − V_t, V = 0 after the end; returns R_t = r_t + γ V_{t+1}. GAE with λ = 0.

    Least variance, and biased wherever the critic is wrong. Needs a critic. Source: Sutton & Barto 2018, eq. 13.12.
    """

    kind, name, needs = "advantage", "td0", frozenset({"values"})
    gamma: float = param(1.0, "discount γ", ge=0, le=1)

    def estimate(self, batch, state):
        errors_BT = gae(batch.rewards_BT, batch.values_BT, batch.mask_BT, self.gamma, 0.0, batch.after_B)
        return Estimate(errors_BT, (errors_BT + batch.values_BT).masked_fill(~batch.mask_BT, 0.0))


@hookimpl
def register_components(register):
    register(TD0)
