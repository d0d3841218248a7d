"""REINFORCE with the score of the likeliest response as baseline."""

from rlhf_lab.contracts import Component, Estimate, hookimpl, param
from rlhf_lab_plugins.advantage.monte_carlo import discounted_returns


class ReMax(Component):
    """A_t = Σ_{k≥t} γ^{k−t} r_k − s(x, y_greedy): what a sample brings beyond what the policy would say without sampling.

    The baseline does not depend on the sample, so the gradient stays unbiased; it is the score alone, without KL. In units of
    the score. Costs one greedy response to each prompt, sampled by the loop (columns `greedy_score`, `greedy_tokens`). Needs
    no critic and one sample per prompt.
    Source: Li et al. 2024 (arXiv 2310.10505), section 4; verl `core_algos.py`, compute_remax_outcome_advantage.
    """

    kind, name, needs = "advantage", "remax", frozenset({"greedy_scores"})
    gamma: float = param(1.0, "discount γ", ge=0, le=1)

    def estimate(self, batch, state):
        returns_BT = discounted_returns(batch.rewards_BT, batch.mask_BT, self.gamma)
        advantages_BT = returns_BT - batch.greedy_scores_B[:, None].to(returns_BT.dtype)
        return Estimate(advantages_BT.masked_fill(~batch.mask_BT, 0.0), returns_BT)


@hookimpl
def register_components(register):
    register(ReMax)
