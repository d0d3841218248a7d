"""bf16 where it pays: matrix products under autocast, attention in fp32 on the CPU, frozen models with bf16 weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rlhf_lab.context import StageContext

ATTENTION = "rlhf_lab_sdpa_fp32"


def has_bf16_units() -> bool:
    """Whether bf16 matrix products are faster than fp32 ones on this machine."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def ready(model: Any, ctx: StageContext, *, frozen: bool = False) -> Any:
    """The model on the run's device, in the run's precision. `frozen`: nothing of it will ever be trained."""
    if ctx.config.precision == "bf16":
        if ctx.device.type == "cpu":
            attend_in_fp32(model)
        if frozen:
            model = model.to(torch.bfloat16)
    return model.to(ctx.device)


def attend_in_fp32(model: Any) -> None:
    """Scaled dot-product attention in fp32 inside bf16 autocast: on the CPU its bf16 backward is several times slower."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, fp32_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def fp32_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        mixed, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return mixed.to(query.dtype), weights
