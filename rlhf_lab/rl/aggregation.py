"""How per-token terms become one number. The weights are those of a whole minibatch, so parts of it add up."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "constant"]


def weights(mask_BT: Tensor, how: Aggregation, length: int) -> Tensor:
    """weights_BT such that the loss is Σ weights · x; all 0 for an empty mask.

    token_mean: every token counts alike (Ziegler et al. 2019's code; DAPO). sequence_mean: every sequence counts alike,
    (1/B) Σ_i (1/L_i) Σ_t (GRPO). constant: Σ / (B · length), `length` being the longest allowed response (Dr. GRPO).
    """
    mask = mask_BT.float()
    if how == "token_mean":
        return mask / mask.sum().clamp(min=1)
    if how == "sequence_mean":
        return mask / (mask.sum(1, keepdim=True).clamp(min=1) * len(mask))
    return mask / (length * len(mask))
