"""The clipped surrogate with a second clip where the advantage is negative."""

import torch

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab_plugins.objective.ppo_clip import clipped_surrogate
from rlhf_lab_plugins.objective.ratio import measures


def dual_clipped_surrogate(ratio, advantages, eps, c):
    """The clipped surrogate, but at most −cA where A < 0 (Ye et al. 2020, dual-clip PPO): a huge ratio cannot blow it up."""
    loss = clipped_surrogate(ratio, advantages, eps)
    return torch.where(advantages < 0, torch.minimum(loss, -c * advantages), loss)


class DualClip(Component):
    """L = −E[max(min(ρA, clip(ρ, 1±ε)A), cA)] where A < 0, the clipped surrogate elsewhere; c > 1.

    Metrics: `clip_fraction` of the first clip, `dual_clip_fraction` of the second, `ratio`, `approx_kl` in nats per token.
    Source: Ye et al. 2020 (arXiv 1912.09729), dual-clip PPO; c = 3 there and in verl.
    """

    kind, name = "objective", "dual_clip"
    weight: float = param(1.0, "weight in the loss", ge=0)
    eps: float = param(0.2, "ε, the first clip", gt=0, lt=1, source="Schulman et al. 2017, table 1")
    c: float = param(3.0, "c, ratio beyond which a negative advantage no longer counts", gt=1, source="Ye et al. 2020")

    def loss(self, new, batch):
        log_ratio_BT = new.logprobs_BT - batch.old_logprobs_BT
        ratio_BT, advantages_BT = log_ratio_BT.exp(), batch.advantages_BT
        once_BT = clipped_surrogate(ratio_BT, advantages_BT, self.eps)
        twice_BT = dual_clipped_surrogate(ratio_BT, advantages_BT, self.eps, self.c)
        clipped = {
            "clip_fraction": batch.token_mean((once_BT > -ratio_BT * advantages_BT).float()),
            "dual_clip_fraction": batch.token_mean((twice_BT < once_BT).float()),
        }
        return Loss(batch.aggregate(twice_BT), clipped | measures(log_ratio_BT, batch))


@hookimpl
def register_components(register):
    register(DualClip)
