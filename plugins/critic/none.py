"""No critic: for estimators that take their baseline from samples, or none."""

from rlhf_lab.contracts import Component, hookimpl


class NoCritic(Component):
    """Computes no values. Refused where the advantage estimator or a loss term needs them."""

    kind, name = "critic", "none"

    def build(self, ctx, policy):
        return None


@hookimpl
def register_components(register):
    register(NoCritic)
