"""An adapter under bf16 autocast, against peft as it comes."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lab.lm.adapters import with_adapter


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_inputs_that_are_not_cast_give_the_same_bytes(dtype):
    """Logits and every gradient; with peft's own way the inputs go to fp32, and autocast brings them back."""
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    adapted = with_adapter(LlamaForCausalLM(LlamaConfig(**sizes)).to(dtype), 4, 8.0, torch.Generator().manual_seed(0))
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    ids = torch.randint(0, 50, (3, 7))

    def outcome():
        adapted.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = adapted(input_ids=ids).logits
        logits.float().square().mean().backward()
        return [logits.detach().clone(), *(p.grad.clone() for p in adapted.parameters() if p.grad is not None)]

    ours = outcome()
    assert not any(layer.cast_input_dtype_enabled for layer in layers) and len(layers) == 14
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    assert all(torch.equal(a, b) for a, b in zip(ours, outcome(), strict=True)) and len(ours) == 1 + 2 * len(layers)
