"""The surrogate with a penalty on the step instead of a clip."""

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab_plugins.objective.ratio import measures


class KLPenalty(Component):
    """L = −E[ρA] + β E[KL(π_old‖π)]: the KL of the *step*, not the one to the reference.

    The KL is estimated per token by ρ − 1 − log ρ, which for samples of π_old is unbiased, with its gradient, and never
    negative (Schulman 2020, k3). Metrics: `step_kl` and `approx_kl` in nats per token, `ratio`.
    Source: Schulman et al. 2017, eq. 8 and table 1 (β = 3 was the best of their fixed ones).
    """

    kind, name = "objective", "kl_penalty"
    weight: float = param(1.0, "weight in the loss", ge=0)
    beta: float | None = param(
        3.0,
        "β, penalty per nat; null: the controller's, such as step_kl_doubling, with kl_placement: loss",
        ge=0,
        allow_inf_nan=False,
        source="Schulman et al. 2017, table 1",
    )

    @property
    def needs(self):
        return frozenset({"beta"}) if self.beta is None else frozenset()

    def loss(self, new, batch):
        beta = batch.beta if self.beta is None else self.beta
        log_ratio_BT = new.logprobs_BT - batch.old_logprobs_BT
        kl_BT = log_ratio_BT.expm1() - log_ratio_BT
        loss_BT = beta * kl_BT - log_ratio_BT.exp() * batch.advantages_BT
        return Loss(batch.aggregate(loss_BT), {"step_kl": batch.token_mean(kl_BT)} | measures(log_ratio_BT, batch))


@hookimpl
def register_components(register):
    register(KLPenalty)
