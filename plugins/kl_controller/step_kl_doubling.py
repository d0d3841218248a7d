"""PPO's rule of thumb for a penalty on the size of an update: half of it, or twice."""

from rlhf_lab.contracts import Component, hookimpl, param


def doubled_or_halved(beta: float, kl: float, target: float, tolerance: float, factor: float) -> float:
    """β/2 where d < d*/1.5, 2β where d > 1.5 d*, else β (Schulman et al. 2017, section 4); kept where a float is one."""
    if kl < target / tolerance:
        return max(beta / factor, 1e-30)
    return min(beta * factor, 1e30) if kl > target * tolerance else beta


class StepKLDoubling(Component):
    """β ← β/2 if d < d*/1.5, 2β if d > 1.5 d*; d is the KL of the *update*, KL(π_old‖π), not the one to the reference.

    d is estimated after each update on the batch that was trained on (Σ_t (ρ − 1 − log ρ), nats per sequence; per token with
    `kl_unit: token`, which is the paper's unit). β weighs the penalty on the update: `kl_placement: loss`, with `kl_penalty`
    and its `beta: null` in the objective. State: `beta`. Source: Schulman et al. 2017, section 4 (d* in 0.003, 0.01, 0.03).
    """

    kind, name, needs = "kl_controller", "step_kl_doubling", frozenset({"step_kl"})
    beta: float = param(1.0, "β at the start", gt=0, allow_inf_nan=False)
    target: float = param(0.01, "d*", gt=0, allow_inf_nan=False, unit="nats in kl_unit", source="Schulman et al. 2017, table 1")
    tolerance: float = param(
        1.5, "how far d may be from d*, as a factor", gt=1, allow_inf_nan=False, source="Schulman et al. 2017, section 4"
    )
    factor: float = param(2.0, "by which β changes", gt=1, le=1e6, source="Schulman et al. 2017, section 4")

    def fits(self, stage, run):
        if stage.kl_placement != "loss":
            raise ValueError(
                f"the β of {self.name} weighs the KL of the update: set kl_placement: loss, and kl_penalty with beta: null in "
                "the objective"
            )

    def start(self):
        return {"beta": self.beta}

    def update(self, state, kl, n_sequences):
        return {"beta": doubled_or_halved(state["beta"], kl, self.target, self.tolerance, self.factor)}


@hookimpl
def register_components(register):
    register(StepKLDoubling)
