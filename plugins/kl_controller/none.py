"""No KL in the reward."""

from rlhf_lab.contracts import Component, hookimpl


class NoKL(Component):
    """β_t = 0: the reward is the score alone.

    For arms without a KL term (DAPO, GSPO), and for those whose KL stands in the loss (`kl_loss`). State: `beta`.
    Source: Shao et al. 2024, section 4.1.1 moves the KL out of the reward.
    """

    kind, name = "kl_controller", "none"

    def start(self):
        return {"beta": 0.0}

    def update(self, state, kl, n_sequences):
        return dict(state)


@hookimpl
def register_components(register):
    register(NoKL)
