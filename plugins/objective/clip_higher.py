"""The clipped surrogate with a wider bound above than below."""

import torch

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab_plugins.objective.ratio import measures


def asymmetric_surrogate(ratio, advantages, eps_low, eps_high):
    """−min(ρA, clip(ρ, 1−ε_low, 1+ε_high)A), element by element (Yu et al. 2025, eq. 10)."""
    return torch.maximum(-ratio * advantages, -ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)


class ClipHigher(Component):
    """L = −E[min(ρA, clip(ρ, 1−ε_low, 1+ε_high)A)]: unlikely tokens may grow further before they are clipped.

    ε_low = ε_high is `ppo_clip`. Metrics: `clip_fraction`, `ratio`, `approx_kl` in nats per token.
    Source: Yu et al. 2025 (DAPO), eq. 10 and section 4.1.
    """

    kind, name = "objective", "clip_higher"
    weight: float = param(1.0, "weight in the loss", ge=0)
    eps_low: float = param(0.2, "ε_low", gt=0, lt=1, source="Yu et al. 2025, section 4.1")
    eps_high: float = param(0.28, "ε_high", gt=0, allow_inf_nan=False, source="Yu et al. 2025, section 4.1")

    def loss(self, new, batch):
        log_ratio_BT = new.logprobs_BT - batch.old_logprobs_BT
        ratio_BT = log_ratio_BT.exp()
        loss_BT = asymmetric_surrogate(ratio_BT, batch.advantages_BT, self.eps_low, self.eps_high)
        decides_BT = loss_BT > -ratio_BT * batch.advantages_BT
        clipped = {"clip_fraction": batch.token_mean(decides_BT.float())}
        return Loss(batch.aggregate(loss_BT), clipped | measures(log_ratio_BT, batch))


@hookimpl
def register_components(register):
    register(ClipHigher)
