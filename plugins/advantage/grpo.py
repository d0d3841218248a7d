"""Group-relative advantages, in units of the group's standard deviation."""

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.advantage.whole_responses import (
    above_group_mean,
    group_sizes,
    returns_of,
    same_for_each_token,
    sum_over_group,
)


class GRPO(Component):
    """A_i = (r_i − μ)/(s + ε), μ and s the mean and the sample standard deviation (ddof 1) of the group's G returns.

    r → a·r + b changes nothing (a > 0, ε → 0), so the scale of the score is lost and β means something else for each
    prompt. A group that agrees has A = 0. Needs samples_per_prompt ≥ 2 and no critic. The published form has the KL in the
    loss (`kl: none`, `kl_loss`); otherwise r_i is score and KL together.
    Source: Shao et al. 2024, section 4.1.2; ddof and ε as TRL's GRPOTrainer.
    """

    kind, name, needs = "advantage", "grpo", frozenset({"groups"})
    eps: float = param(1e-4, "ε, added to the standard deviation", gt=0, unit="score", source="TRL GRPOTrainer; verl has 1e-6")

    def estimate(self, batch, state):
        returns_B = returns_of(batch)
        centred_B = above_group_mean(returns_B, batch.group_B, self.name)
        variance_B = sum_over_group(centred_B.square(), batch.group_B) / (group_sizes(batch.group_B, self.name) - 1)
        return same_for_each_token(centred_B / (variance_B.sqrt() + self.eps), returns_B, batch)


@hookimpl
def register_components(register):
    register(GRPO)
