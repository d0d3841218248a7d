"""TODO: one line on what this critic is."""

import torch
from torch import nn

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import StageRef
from rlhf_lab.lm.files import load_backbone
from rlhf_lab.lm.logprobs import position_ids, sequence


class Skeleton(Component):
    """V(x, y_<t) = w · tanh(A h_{t−1}), h from a network of its own. TODO: your equation, and how it starts.

    `build(ctx, policy)` returns an object with `module` (what is trained) and `values(rollout)`. The value of place t may
    know the prompt and the tokens before t only, so it is read one position earlier. Source: TODO (author, year, section).
    """

    kind, name = "critic", "skeleton"
    init: StageRef = param("sft", "the stage that the network starts from")
    learning_rate: float = param(1e-3, "of the critic", gt=0, allow_inf_nan=False)
    hidden: int = param(16, "width of the layer between h and the value", ge=1)

    def build(self, ctx, policy):
        return Values(ValueNetwork(load_backbone(ctx.input(self.init)), self.hidden, ctx.torch_rng("critic")).to(ctx.device))


class ValueNetwork(nn.Module):
    """The network."""

    def __init__(self, backbone, hidden, generator):
        super().__init__()
        self.backbone = backbone
        self.layer = nn.Linear(backbone.config.hidden_size, hidden)
        self.head = nn.Linear(hidden, 1)
        with torch.no_grad():
            for linear in (self.layer, self.head):
                linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / linear.in_features**0.5)
                linear.bias.zero_()


class Values:
    """The live critic."""

    def __init__(self, module):
        self.module = module

    def values(self, rollout):
        ids_BL, mask_BL = sequence(rollout)
        hidden_BLd = self.module.backbone(
            input_ids=ids_BL, attention_mask=mask_BL.long(), position_ids=position_ids(mask_BL), use_cache=False
        ).last_hidden_state
        before = rollout.prompt_ids_BP.shape[1] - 1
        return self.module.head(torch.tanh(self.module.layer(hidden_BLd[:, before:-1].float()))).squeeze(-1)


@hookimpl
def register_components(register):
    register(Skeleton)
