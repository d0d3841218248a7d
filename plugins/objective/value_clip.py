"""The clipped value loss."""

import torch

from rlhf_lab.contracts import Component, Loss, hookimpl, param


def clipped_value_loss(values, old_values, returns, eps):
    """½ max[(V−R)², (clip(V, V_old ± ε) − R)²], element by element (lm-human-preferences `train_policy.py`, loss)."""
    clipped = old_values + (values - old_values).clamp(-eps, eps)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


class ValueClip(Component):
    """L_V = ½ E[max((V−R)², (clip(V, V_old ± ε) − R)²)], the critic's loss.

    Source: lm-human-preferences `train_policy.py`; ε = 0.2, weight 0.1. Metric: `value_clip_fraction`.
    """

    kind, name, needs = "objective", "value_clip", frozenset({"values"})
    weight: float = param(0.1, "weight in the loss", ge=0, source="lm-human-preferences train_policy.py, vf_coef")
    eps: float = param(0.2, "clip range of the value", gt=0, source="lm-human-preferences train_policy.py, cliprange_value")

    def loss(self, new, batch):
        loss_BT = clipped_value_loss(new.values_BT, batch.old_values_BT, batch.returns_BT, self.eps)
        plain_BT = 0.5 * (new.values_BT - batch.returns_BT).square()
        return Loss(batch.aggregate_values(loss_BT), {"value_clip_fraction": batch.token_mean((loss_BT > plain_BT).float())})


@hookimpl
def register_components(register):
    register(ValueClip)
