"""A value network of its own, beside the policy."""

from typing import Literal

import torch

from rlhf_lab.contracts import Component, StageRef, hookimpl, param
from rlhf_lab.lm.adapters import with_adapter
from rlhf_lab.lm.files import freeze_embeddings
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.scalar import ScalarModel, load_scalar_model, value_backbone


class ValueModel(Component):
    """V(x, y_<t) = w·h_{t−1} + b, from a network that shares nothing with the policy.

    Started from a reward model (backbone, head, gain and bias; Ouyang et al. 2022, C.4; Stiennon et al. 2020, G.1), from a
    policy's stage with a fresh head, or from scratch. `lora` trains an adapter and the head only.
    """

    kind, name = "critic", "value_model"
    init: StageRef | None = param(
        "reward_model", "the stage that the critic starts from: a reward model, or a language model; null: weights drawn anew"
    )
    learning_rate: float = param(1e-3, "of the critic", gt=0, allow_inf_nan=False)
    adaptation: Literal["full", "lora"] = param("full", "what is trained")
    lora_rank: int = param(16, "r", ge=1)
    lora_alpha: float = param(32.0, "α; the update is scaled by α/r", gt=0)
    freeze_embeddings: bool = param(False, "with `full`: leave the embedding as it is")

    def build(self, ctx, policy):
        if self.init is not None and (ctx.input(self.init) / "head.json").is_file():
            model = load_scalar_model(ctx.input(self.init))
        else:
            model = ScalarModel(value_backbone(ctx, self.init, policy), "last", ctx.torch_rng("value_head"))
        if self.adaptation == "lora":
            backbone = ready(model.backbone, ctx, frozen=True)
            model.backbone = with_adapter(backbone, self.lora_rank, self.lora_alpha, ctx.torch_rng("critic_lora"))
        else:
            ready(model.backbone, ctx)
        if self.freeze_embeddings:
            freeze_embeddings(model.backbone)
        return Values(model.eval().to(ctx.device))


class Values:
    """The live critic."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def values(self, rollout):
        return self.module.values(rollout)


@hookimpl
def register_components(register):
    register(ValueModel)
