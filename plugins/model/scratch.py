"""A new model from a config."""

import torch

from rlhf_lab.contracts import Component, hookimpl, param


class Scratch(Component):
    """Llama from config."""

    kind, name = "model", "scratch"
    hidden_size: int = param(64, "d", ge=1)
    layers: int = param(2, "layers", ge=1)
    heads: int = param(4, "heads", ge=1)
    context: int = param(128, "context", ge=2)

    def open(self, ctx):
        from transformers import AutoModelForCausalLM, LlamaConfig

        tokenizer = ctx.data.tokenizer()
        config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=self.hidden_size, intermediate_size=4 * self.hidden_size,
                             num_hidden_layers=self.layers, num_attention_heads=self.heads, max_position_embeddings=self.context,
                             tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            return AutoModelForCausalLM.from_config(config), tokenizer


@hookimpl
def register_components(register):
    register(Scratch)
