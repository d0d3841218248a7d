"""A value head on the policy's own trunk."""

import math

import torch

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.errors import ModelError


class SharedTrunk(Component):
    """V(x, y_<t) = w·h_{t−1} + b, h the policy's last hidden state; the value loss trains the trunk too.

    w starts at N(0, scale²/(d+1)) and b at 0, so with scale 0 every value is 0 at first. `learning_rate` is the head's; the
    trunk moves at the policy's. In `critic_warmup` only the head is trained.
    Source: Ziegler et al. 2019, lm-human-preferences `policy.py` (value head of scale 0); Stiennon et al. 2020, G.1, found
    a network apart (`value_model`) better.
    """

    kind, name = "critic", "shared_trunk"
    learning_rate: float = param(1e-3, "of the head", gt=0, allow_inf_nan=False)
    scale: float = param(
        0.0, "standard deviation of the head's weights, times √(d+1)", ge=0, allow_inf_nan=False, source="lm-human-preferences"
    )

    def build(self, ctx, policy):
        if not (hasattr(policy, "hidden") and hasattr(policy.module, "config")):
            raise ModelError("critic 'shared_trunk' reads the policy's hidden states, and this policy has none")
        d_model = policy.module.config.get_text_config().hidden_size
        head = torch.nn.Linear(d_model, 1)
        with torch.no_grad():
            noise = torch.randn(1, d_model, generator=ctx.torch_rng("value_head"))
            head.weight.copy_(noise * self.scale / math.sqrt(d_model + 1))
            head.bias.zero_()
        return HeadOnTrunk(head.to(ctx.device), policy)


class HeadOnTrunk:
    """The live critic; its module is the head, the trunk is the policy's."""

    def __init__(self, head, policy):
        self.module, self.policy = head, policy

    def values(self, rollout):
        hidden = self.policy.hidden(rollout)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.module(hidden).squeeze(-1)


@hookimpl
def register_components(register):
    register(SharedTrunk)
