"""The clipped surrogate."""

import torch

from rlhf_lab.contracts import Component, Loss, hookimpl, param


def clipped_surrogate(ratio, advantages, eps):
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A), element by element (Schulman et al. 2017, eq. 7)."""
    return torch.maximum(-ratio * advantages, -ratio.clamp(1 - eps, 1 + eps) * advantages)


class PPOClip(Component):
    """L = −E[min(ρA, clip(ρ, 1±ε)A)], ρ = π(y_t) / π_old(y_t) per token.

    Source: Schulman et al. 2017, eq. 7. Metrics: `clip_fraction` (share of tokens where the clip decides), `approx_kl`
    = ½E[(log ρ)²] in nats per token, `ratio`.
    """

    kind, name = "objective", "ppo_clip"
    weight: float = param(1.0, "weight in the loss", ge=0)
    eps: float = param(0.2, "clip range ε", gt=0, lt=1, source="Ouyang et al. 2022, C.4")

    def loss(self, new, batch):
        log_ratio_BT = new.logprobs_BT - batch.old_logprobs_BT
        ratio_BT = log_ratio_BT.exp()
        loss_BT = clipped_surrogate(ratio_BT, batch.advantages_BT, self.eps)
        decides_BT = loss_BT > -ratio_BT * batch.advantages_BT
        return Loss(
            batch.aggregate(loss_BT),
            {
                "clip_fraction": batch.token_mean(decides_BT.float()),
                "approx_kl": batch.token_mean(log_ratio_BT.square() / 2),
                "ratio": batch.token_mean(ratio_BT),
            },
        )


@hookimpl
def register_components(register):
    register(PPOClip)
