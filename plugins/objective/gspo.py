"""The clipped surrogate with one ratio for the whole response."""

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab_plugins.objective.clip_higher import asymmetric_surrogate
from rlhf_lab_plugins.objective.ratio import measures


def sequence_log_ratio(log_ratio_BT, mask_BT):
    """log s_B = (1/L) Σ_t log ρ_t, nats per token (Zheng et al. 2025, eq. 7)."""
    return log_ratio_BT.masked_fill(~mask_BT, 0.0).sum(1) / mask_BT.sum(1).clamp(min=1)


class GSPO(Component):
    """L = −E[min(sA, clip(s, 1−ε_low, 1+ε_high)A)], s = (π(y)/π_old(y))^{1/L}: the unit that is scored is the one clipped.

    With `aggregation: sequence_mean` every response counts alike, as published. A ratio per token is of order 1 ± 0.2, one
    per response of order 1 ± 0.0004. Metrics: `clip_fraction`, `ratio` and `approx_kl` of the tokens.
    Source: Zheng et al. 2025 (arXiv 2507.18071), eqs. 5–7 and section 5.1.
    """

    kind, name = "objective", "gspo"
    weight: float = param(1.0, "weight in the loss", ge=0)
    eps_low: float = param(3e-4, "ε_low", gt=0, lt=1, source="Zheng et al. 2025, section 5.1")
    eps_high: float = param(4e-4, "ε_high", gt=0, allow_inf_nan=False, source="Zheng et al. 2025, section 5.1")

    def loss(self, new, batch):
        log_ratio_BT = new.logprobs_BT - batch.old_logprobs_BT
        ratio_B1 = sequence_log_ratio(log_ratio_BT, batch.mask_BT).exp()[:, None]
        loss_BT = asymmetric_surrogate(ratio_B1, batch.advantages_BT, self.eps_low, self.eps_high)
        decides_BT = loss_BT > -ratio_B1 * batch.advantages_BT
        clipped = {"clip_fraction": batch.token_mean(decides_BT.float())}
        return Loss(batch.aggregate(loss_BT), clipped | measures(log_ratio_BT, batch))


@hookimpl
def register_components(register):
    register(GSPO)
