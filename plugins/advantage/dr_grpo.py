"""GRPO without the division by the standard deviation."""

from rlhf_lab.contracts import Component, hookimpl
from rlhf_lab_plugins.advantage.whole_responses import above_group_mean, returns_of, same_for_each_token


class DrGRPO(Component):
    """A_i = r_i − μ, μ the mean of the group's G returns: (G−1)/G times RLOO.

    Goes with `aggregation: constant`, which removes GRPO's other bias, 1/length. In units of the score. Needs
    samples_per_prompt ≥ 2 and no critic. Source: Liu et al. 2025 (arXiv 2503.20783), section 3.2.
    """

    kind, name, needs = "advantage", "dr_grpo", frozenset({"groups"})

    def estimate(self, batch, state):
        returns_B = returns_of(batch)
        return same_for_each_token(above_group_mean(returns_B, batch.group_B, self.name), returns_B, batch)


@hookimpl
def register_components(register):
    register(DrGRPO)
