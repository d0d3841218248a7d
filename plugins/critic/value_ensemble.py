"""Several value heads on one network."""

from typing import Literal

from rlhf_lab.contracts import Component, StageRef, hookimpl, param
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.scalar import ScalarModel, value_backbone


class ValueEnsemble(Component):
    """V = mean_h (w_h·h_{t−1} + b_h) over K heads on one network apart from the policy, or their minimum.

    The heads start from different draws of N(0, 1/(d+1)), and the value loss is the mean of their losses, so that each is a
    critic of its own and they differ where the data do not decide. The minimum is the cautious choice.
    Source: Osband et al. 2016 (heads on a shared network, without its bootstrap); minimum: Fujimoto et al. 2018, TD3.
    """

    kind, name = "critic", "value_ensemble"
    init: StageRef | None = param(
        "reward_model", "the stage that the network starts from: a reward model, or a language model; null: weights drawn anew"
    )
    heads: int = param(5, "K", ge=2, le=1000)
    combine: Literal["mean", "min"] = param("mean", "what the advantages read")
    learning_rate: float = param(1e-3, "of the critic", gt=0, allow_inf_nan=False)

    def build(self, ctx, policy):
        backbone = ready(value_backbone(ctx, self.init, policy), ctx)
        model = ScalarModel(backbone, "last", ctx.torch_rng("value_head"), heads=self.heads)
        return Heads(model.eval().to(ctx.device), self.combine)


class Heads:
    """The live critic."""

    def __init__(self, module, combine):
        self.module, self.combine = module, combine

    def heads(self, rollout):
        """values_HBT, each head's own."""
        return self.module.values(rollout).movedim(-1, 0)

    def values(self, rollout):
        values_HBT = self.heads(rollout)
        return values_HBT.mean(0) if self.combine == "mean" else values_HBT.amin(0)


@hookimpl
def register_components(register):
    register(ValueEnsemble)
