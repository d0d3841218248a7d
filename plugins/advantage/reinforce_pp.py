"""REINFORCE++: no baseline per prompt but one scale for the whole batch; and its form with a group baseline."""

from typing import Literal

from rlhf_lab.contracts import Component, Estimate, hookimpl, param
from rlhf_lab.rl import masked
from rlhf_lab_plugins.advantage.monte_carlo import discounted_returns
from rlhf_lab_plugins.advantage.whole_responses import above_group_mean, returns_of, same_for_each_token

DDOF = "variance over the tokens of the batch: 0 biased, 1 unbiased"


class ReinforcePP(Component):
    """A_t = (R_t − mean)/std over all tokens of the batch, R_t = Σ_{k≥t} γ^{k−t} r_k.

    Whitens by itself, so `whiten_advantages: none`. Returns are not whitened. Needs no critic and one sample per prompt.
    Source: Hu et al. 2025 (arXiv 2501.03262), global advantage normalisation; ddof as verl's masked_whiten.
    """

    kind, name = "advantage", "reinforce_pp"
    gamma: float = param(1.0, "discount γ", ge=0, le=1)
    ddof: Literal[0, 1] = param(1, DDOF, source="verl torch_functional.py, masked_var")

    def estimate(self, batch, state):
        returns_BT = discounted_returns(batch.rewards_BT, batch.mask_BT, self.gamma)
        return Estimate(masked.whiten(returns_BT, batch.mask_BT, ddof=self.ddof), returns_BT)


class ReinforcePPBaseline(Component):
    """A_i = (r_i − μ_group − mean)/std, mean and std over all tokens of the batch: a group's mean, everybody's scale.

    Whitens by itself, so `whiten_advantages: none`. Needs samples_per_prompt ≥ 2 and no critic.
    Source: Hu et al. 2025 (arXiv 2501.03262), REINFORCE++ with baseline; verl `core_algos.py`.
    """

    kind, name, needs = "advantage", "reinforce_pp_baseline", frozenset({"groups"})
    ddof: Literal[0, 1] = param(1, DDOF, source="verl torch_functional.py, masked_var")

    def estimate(self, batch, state):
        returns_B = returns_of(batch)
        plain = same_for_each_token(above_group_mean(returns_B, batch.group_B, self.name), returns_B, batch)
        return plain._replace(advantages_BT=masked.whiten(plain.advantages_BT, batch.mask_BT, ddof=self.ddof))


@hookimpl
def register_components(register):
    register(ReinforcePP)
    register(ReinforcePPBaseline)
