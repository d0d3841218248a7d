"""Whole responses as single actions: their returns, sums over the group of a prompt, and back to tokens."""

import torch

from rlhf_lab.contracts import Estimate
from rlhf_lab.errors import SpecError


def returns_of(batch):
    """returns_B = Σ_t r_t over the response tokens (score and KL together), in float64."""
    return batch.rewards_BT.masked_fill(~batch.mask_BT, 0.0).double().sum(1)


def sum_over_group(x_B, group_B):
    """For each sequence the sum of x over all members of its group, itself included."""
    return (group_B[:, None] == group_B[None, :]).to(x_B.dtype) @ x_B


def group_sizes(group_B, who):
    """G for each sequence, in float64. Raises SpecError where a group has a single member."""
    sizes_B = sum_over_group(torch.ones(len(group_B), dtype=torch.float64, device=group_B.device), group_B)
    if (sizes_B < 2).any():
        raise SpecError(f"{who} compares the samples of a prompt; set samples_per_prompt: 2 or more")
    return sizes_B


def above_group_mean(returns_B, group_B, who):
    """r_i − (1/G) Σ_j r_j."""
    return returns_B - sum_over_group(returns_B, group_B) / group_sizes(group_B, who)


def same_for_each_token(advantages_B, returns_B, batch):
    """An estimate in which every token of a response has the response's advantage and return; 0 in masked places."""
    dtype = batch.rewards_BT.dtype
    spread = [torch.where(batch.mask_BT, x_B.to(dtype)[:, None], 0.0) for x_B in (advantages_B, returns_B)]
    return Estimate(*spread)
