"""TODO: one line on what this estimator does."""

import torch

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import Estimate


class Skeleton(Component):
    """A_t = scale · Σ_{k≥t} r_k. TODO: your equation, with shapes and units.

    `needs` lists what is read beyond rewards and scores: "values" (a critic is then trained), "groups" (several samples per
    prompt), "greedy_scores". Masked places hold 0 at the end; what stands there before means nothing.
    State goes from batch to batch: return it as the third part of Estimate. Source: TODO (author, year, equation).
    """

    kind, name, needs = "advantage", "skeleton", frozenset()
    scale: float = param(1.0, "TODO: what this parameter does", gt=0, allow_inf_nan=False)

    def estimate(self, batch, state):
        rewards_BT = batch.rewards_BT.masked_fill(~batch.mask_BT, 0.0)
        returns_BT = rewards_BT.flip(1).cumsum(1).flip(1).masked_fill(~batch.mask_BT, 0.0)
        return Estimate(torch.where(batch.mask_BT, self.scale * returns_BT, 0.0), returns_BT)


@hookimpl
def register_components(register):
    register(Skeleton)
