"""TODO: one line on where these weights come from."""

import torch

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.errors import ModelError


class Skeleton(Component):
    """A small GPT-2 with weights from N(0, spread²). TODO: which weights, from where, under which licence.

    `open(ctx)` returns (causal language model, tokenizer), in fp32 on the CPU and in eval mode. What is random comes from
    `ctx.seed`, so that the stage can be repeated.
    """

    kind, name = "model", "skeleton"
    width: int = param(16, "width of the residual stream", ge=2, multiple_of=2)
    spread: float = param(0.02, "standard deviation of the initial weights", gt=0, allow_inf_nan=False)

    def open(self, ctx):
        from transformers import AutoModelForCausalLM, GPT2Config

        tokenizer = ctx.data.tokenizer()
        if tokenizer is None:
            raise ModelError("model skeleton takes its tokenizer from the data, and these bring none; choose other data")
        ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=self.width, n_layer=2, n_head=2, initializer_range=self.spread, **ids
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            return AutoModelForCausalLM.from_config(config).eval(), tokenizer


@hookimpl
def register_components(register):
    register(Skeleton)
