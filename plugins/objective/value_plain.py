"""The squared value loss."""

from rlhf_lab.contracts import Component, Loss, hookimpl, param


class ValuePlain(Component):
    """L_V = ½ E[(V − R)²], the critic's loss without a clip, in squared score.

    Source: Schulman et al. 2017, eq. 9 (without the ½; their c₁ = 1 is weight 2 here). The default weight is `value_clip`'s.
    """

    kind, name, needs = "objective", "value_plain", frozenset({"values"})
    weight: float = param(0.1, "weight in the loss", ge=0, source="lm-human-preferences train_policy.py, vf_coef")

    def loss(self, new, batch):
        return Loss(batch.aggregate_values(0.5 * (new.values_BT - batch.returns_BT).square()))


@hookimpl
def register_components(register):
    register(ValuePlain)
