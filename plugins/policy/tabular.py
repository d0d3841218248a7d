"""A policy that is a table of next-token logits: it can be any policy, and all about it can be computed exactly."""

import copy

from rlhf_lab.contracts import Component, hookimpl
from rlhf_lab.errors import ModelError
from rlhf_lab.lm.tokens import Encoder
from rlhf_lab_plugins.model.tabular import ContextTable
from rlhf_lab_plugins.policy.causal_lm import FullPolicy


class TabularPolicy(Component):
    """π(y_t | x, y_<t) = softmax(table[x y_<t]), started from model `tabular`, which is also its reference.

    Needs no supervised stage. Sampling, log-probs and updates are those of language models; only the logits are looked up.
    """

    kind, name = "policy", "tabular"

    def build(self, ctx):
        table, tokenizer = ctx.base_model
        if not isinstance(table, ContextTable):
            raise ModelError("policy 'tabular' trains a table of logits; set model: tabular, or policy: causal_lm")
        policy, reference = (copy.deepcopy(table).to(ctx.device) for _ in range(2))
        return FullPolicy(policy, Encoder(tokenizer, ctx.template, table.context), reference.requires_grad_(False))


@hookimpl
def register_components(register):
    register(TabularPolicy)
