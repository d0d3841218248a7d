"""A constant KL coefficient."""

from rlhf_lab.contracts import Component, hookimpl, param


class Fixed(Component):
    """β_t = β_0.

    State: `beta`. Source: Ouyang et al. 2022, C.4 (β = 0.02); Stiennon et al. 2020, B.1 (β = 0.05).
    """

    kind, name = "kl_controller", "fixed"
    beta: float = param(0.02, "KL coefficient β", ge=0, allow_inf_nan=False, source="Ouyang et al. 2022, C.4")

    def start(self):
        return {"beta": self.beta}

    def update(self, state, kl, n_sequences):
        return dict(state)


@hookimpl
def register_components(register):
    register(Fixed)
