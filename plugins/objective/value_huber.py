"""A value loss that is linear far out."""

from torch.nn.functional import huber_loss

from rlhf_lab.contracts import Component, Loss, hookimpl, param


class ValueHuber(Component):
    """L_V = E[h(V − R)], h(e) = ½e² for |e| ≤ δ and δ(|e| − ½δ) beyond: an outlier pulls with δ at most.

    Source: Huber 1964; δ = 1 as Mnih et al. 2015, methods. The default weight is `value_clip`'s.
    """

    kind, name, needs = "objective", "value_huber", frozenset({"values"})
    weight: float = param(0.1, "weight in the loss", ge=0, source="lm-human-preferences train_policy.py, vf_coef")
    delta: float = param(
        1.0, "δ, where the parabola becomes a line", gt=0, allow_inf_nan=False, unit="score", source="Mnih et al. 2015, methods"
    )

    def loss(self, new, batch):
        returns_BT = batch.returns_BT.expand_as(new.values_BT)
        return Loss(batch.aggregate_values(huber_loss(new.values_BT, returns_BT, reduction="none", delta=self.delta)))


@hookimpl
def register_components(register):
    register(ValueHuber)
