"""An entropy bonus."""

from rlhf_lab.contracts import Component, Loss, hookimpl, param


class Entropy(Component):
    """L = −E[H(π(·|s_t))], nats per token, at the sampling temperature.

    Source: Williams & Peng 1991; Schulman et al. 2017, eq. 9 (coefficient 0.01 on Atari). InstructGPT has none.
    """

    kind, name, needs = "objective", "entropy", frozenset({"entropy"})
    weight: float = param(0.01, "weight of the bonus", ge=0, source="Schulman et al. 2017, table 5")

    def loss(self, new, batch):
        return Loss(-batch.aggregate(new.entropy_BT))


@hookimpl
def register_components(register):
    register(Entropy)
