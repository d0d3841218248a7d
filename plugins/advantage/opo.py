"""The baseline of least variance, if the squared gradient of a response grows with its length."""

from rlhf_lab.contracts import Component, hookimpl
from rlhf_lab_plugins.advantage.whole_responses import group_sizes, returns_of, same_for_each_token, sum_over_group


class OPO(Component):
    """A_i = r_i − b*, b* = Σ_j L_j r_j / Σ_j L_j over the group, L_j the number of response tokens.

    The optimal baseline is E[‖∇log π‖² r]/E[‖∇log π‖²]; with token gradients orthogonal and of one size, ‖∇log π(y)‖² ∝ L.
    Meant for exactly on-policy updates (one minibatch, one inner epoch, no clip). Needs samples_per_prompt ≥ 2 and no critic.
    Source: Hao et al. 2025 (arXiv 2505.23585); verl `core_algos.py`, compute_opo_outcome_advantage.
    """

    kind, name, needs = "advantage", "opo", frozenset({"groups"})

    def estimate(self, batch, state):
        group_sizes(batch.group_B, self.name)
        returns_B, lengths_B = returns_of(batch), batch.mask_BT.sum(1).double()
        baseline_B = sum_over_group(lengths_B * returns_B, batch.group_B) / sum_over_group(lengths_B, batch.group_B)
        return same_for_each_token(returns_B - baseline_B, returns_B, batch)


@hookimpl
def register_components(register):
    register(OPO)
