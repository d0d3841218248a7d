"""A critic that is a table: a value for each context."""

import torch

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.errors import ModelError
from rlhf_lab.lm.logprobs import response_logits
from rlhf_lab_plugins.model.tabular import ContextTable


class TabularCritic(Component):
    """V(x, y_<t) = table[x y_<t], 0 at the start: it can be any value function, in units of the score. For policy `tabular`.

    Source: Sutton & Barto 2018, section 6.1 (tabular prediction).
    """

    kind, name = "critic", "tabular"
    learning_rate: float = param(0.05, "of the table", gt=0, allow_inf_nan=False, unit="score per step of Adam")

    def build(self, ctx, policy):
        if not isinstance(policy.module, ContextTable):
            raise ModelError("critic 'tabular' has a value for each context of policy 'tabular'; set policy: tabular")
        return TableOfValues(policy.module)


class TableOfValues:
    """As wide as the policy's table, since a context's number depends on the vocabulary; the first column is read."""

    def __init__(self, policy_table):
        self.module = ContextTable(torch.zeros_like(policy_table.table)).to(policy_table.device)

    def values(self, rollout):
        return response_logits(self.module, rollout)[..., 0]


@hookimpl
def register_components(register):
    register(TabularCritic)
