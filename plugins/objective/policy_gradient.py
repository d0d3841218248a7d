"""The policy gradient itself, without ratio or clip."""

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab_plugins.objective.ratio import measures


class PolicyGradient(Component):
    """L = −E[A_t log π(y_t)], whose gradient is −E[A_t ∇log π(y_t)]. For REINFORCE, RLOO, A2C; with `raft` it is SFT.

    Right for samples of the present policy: use `inner_epochs: 1` and `minibatches: 1`, or know that later steps are off
    policy. The value of the loss means nothing. Metrics: `ratio`, `approx_kl` in nats per token.
    Source: Williams 1992 (REINFORCE); Sutton & Barto 2018, eq. 13.8.
    """

    kind, name = "objective", "policy_gradient"
    weight: float = param(1.0, "weight in the loss", ge=0)

    def loss(self, new, batch):
        value = -batch.aggregate(batch.advantages_BT * new.logprobs_BT)
        return Loss(value, measures(new.logprobs_BT - batch.old_logprobs_BT, batch))


@hookimpl
def register_components(register):
    register(PolicyGradient)
