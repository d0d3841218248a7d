"""The KL coefficient as the multiplier of a KL budget."""

from rlhf_lab.contracts import Component, hookimpl, param


def ascent_step(beta: float, kl: float, budget: float, rate: float) -> float:
    """β ← [β + η (KL − KL*)]₊, projected gradient ascent on the dual of max E[score] s.t. KL ≤ KL*.

    ∂/∂β of the Lagrangian E[score] − β (KL − KL*) is −(KL − KL*), and the dual is minimised over β ≥ 0
    (Boyd & Vandenberghe 2004, chapter 5).
    """
    return max(0.0, beta + rate * (kl - budget))


class DualAscent(Component):
    """β_{n+1} = [β_n + η (KL_n − KL*)]₊: β rises while the budget is overspent and falls to 0 while it is not used up.

    Unlike `adaptive` it can reach 0, and leave it. KL in nats per sequence, once per rollout; β in score per nat, so η is
    in score per squared nat. State: `beta`. Source: Stooke et al. 2020 (the Lagrangian method as integral control).
    """

    kind, name = "kl_controller", "dual_ascent"
    beta: float = param(0.0, "β at the start", ge=0, allow_inf_nan=False)
    budget: float = param(6.0, "KL*, the KL that may be spent", gt=0, allow_inf_nan=False, unit="nats per sequence")
    rate: float = param(0.01, "η", gt=0, allow_inf_nan=False, unit="score per nat²")

    def start(self):
        return {"beta": self.beta}

    def update(self, state, kl, n_sequences):
        return {"beta": ascent_step(state["beta"], kl, self.budget, self.rate)}


@hookimpl
def register_components(register):
    register(DualAscent)
