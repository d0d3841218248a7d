"""A clipped importance weight on the policy gradient: the weight is bounded, no token's gradient is dropped."""

from typing import Literal

from pydantic import model_validator

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab_plugins.objective.ratio import measures


class CISPO(Component):
    """L = −E[sg(clip(ρ)) A log π(y_t)], sg the stop-gradient.

    Two conventions go by this name: `trl` has clip(ρ) = min(ρ, ε_high), ε_high itself being the bound; `verl`, like the
    paper's formula, has clip(ρ, 1−ε_low, 1+ε_high). Metrics: `clip_fraction` (weights that are bounded), `ratio`,
    `approx_kl` in nats per token. Source: MiniMax 2025 (arXiv 2506.13585), section 3.1, eqs. 4–5.
    """

    kind, name = "objective", "cispo"
    weight: float = param(1.0, "weight in the loss", ge=0)
    threshold: Literal["trl", "verl"] = param("trl", "what ε_high means: the bound itself, or its distance from 1")
    eps_high: float = param(5.0, "ε_high", gt=0, allow_inf_nan=False, source="TRL docs, ScaleRL recipe (Khatri et al. 2025)")
    eps_low: float | None = param(None, "ε_low; with `verl` only", gt=0, le=1)

    @model_validator(mode="after")
    def _bounds(self):
        if (self.threshold == "verl") != (self.eps_low is not None):
            wrong = "needs eps_low" if self.eps_low is None else "has no lower bound; leave eps_low out"
            raise ValueError(f"cispo with threshold: {self.threshold} {wrong}")
        return self

    def loss(self, new, batch):
        low, high = (0.0, self.eps_high) if self.threshold == "trl" else (1 - self.eps_low, 1 + self.eps_high)
        log_ratio_BT = new.logprobs_BT - batch.old_logprobs_BT
        ratio_BT = log_ratio_BT.detach().exp()
        weights_BT = ratio_BT.clamp(low, high)
        clipped = {"clip_fraction": batch.token_mean((weights_BT != ratio_BT).float())}
        value = -batch.aggregate(weights_BT * batch.advantages_BT * new.logprobs_BT)
        return Loss(value, clipped | measures(log_ratio_BT, batch))


@hookimpl
def register_components(register):
    register(CISPO)
