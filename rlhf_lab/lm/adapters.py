"""Low-rank adapters (Hu et al. 2022) through peft."""

from __future__ import annotations

from typing import Any

import torch


def with_adapter(model: Any, rank: int, alpha: float, generator: torch.Generator) -> Any:
    """A LoRA adapter on all linear layers but the output layer; A drawn from `generator`, B = 0, no dropout."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    with torch.random.fork_rng(devices=[]):
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0))
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name:
            # peft's own choice (Kaiming uniform with a = √5 is U(±1/√d_in)), from our stream instead of the global one
            bound = parameter.shape[1] ** -0.5
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # to fp32 and, by autocast, back to bf16: the same numbers, later
    return adapted.eval()
