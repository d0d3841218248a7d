"""TODO: one line on what this controller does."""

from rlhf_lab import Component, hookimpl, param


class Skeleton(Component):
    """β ← β · (1 + gain · clip((KL − target)/target, ±0.2)). TODO: your equation, and what it is good for.

    KL is the batch mean of Σ_t (log π − log ref), in nats per sequence, of the rollout that was just trained on.
    State: `beta`; add what else the next step has to know. Source: TODO (author, year, equation).
    """

    kind, name = "kl_controller", "skeleton"
    beta: float = param(0.1, "β at the start", gt=0, allow_inf_nan=False)
    target: float = param(6.0, "KL that is aimed at", gt=0, allow_inf_nan=False, unit="nats per sequence")
    gain: float = param(0.1, "relative change of β per unit of error", gt=0, le=1)

    def start(self):
        return {"beta": self.beta}

    def update(self, state, kl, n_sequences):
        error = max(-0.2, min(0.2, (kl - self.target) / self.target))
        return {**state, "beta": state["beta"] * (1 + self.gain * error)}


@hookimpl
def register_components(register):
    register(Skeleton)
