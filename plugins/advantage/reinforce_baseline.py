"""REINFORCE with a moving average of past returns as baseline."""

from rlhf_lab.contracts import Component, Estimate, hookimpl, param
from rlhf_lab_plugins.advantage.monte_carlo import discounted_returns


class ReinforceBaseline(Component):
    """A_t = R_t − b, b = Σ_n d^n m_n / Σ_n d^n over the mean returns m_n of earlier batches, the latest with n = 0.

    b knows nothing of the present batch, so the gradient stays unbiased; in the first batch b = 0. R_t = Σ_{k≥t} γ^{k−t} r_k,
    m the batch mean of R_0. In units of the score. State: `total` and `weight`, numerator and denominator of b.
    Source: Sutton 1984 and Williams 1992 (reinforcement comparison); weights corrected as in Kingma & Ba 2015, section 3.
    """

    kind, name = "advantage", "reinforce_baseline"
    decay: float = param(0.9, "d, weight of what came before; 0 is the mean of the batch before", ge=0, lt=1)
    gamma: float = param(1.0, "discount γ", ge=0, le=1)

    def estimate(self, batch, state):
        total, weight = state.get("total", 0.0), state.get("weight", 0.0)
        returns_BT = discounted_returns(batch.rewards_BT, batch.mask_BT, self.gamma)
        first_B = returns_BT.gather(1, batch.mask_BT.to(int).argmax(1, keepdim=True)).squeeze(1)
        baseline = total / weight if weight else 0.0
        after = {"total": self.decay * total + first_B.double().mean().item(), "weight": self.decay * weight + 1.0}
        return Estimate((returns_BT - baseline).masked_fill(~batch.mask_BT, 0.0), returns_BT, after)


@hookimpl
def register_components(register):
    register(ReinforceBaseline)
