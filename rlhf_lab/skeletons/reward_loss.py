"""TODO: one line on what this loss of the reward model does."""

import torch

from rlhf_lab import Component, hookimpl, param


class Skeleton(Component):
    """max(0, margin − (r_w − r_l)), mean over the untied pairs of a prompt. TODO: your equation.

    Scores and ratings come as (B, K), K the completions of a prompt, with a mask: what stands in masked places means nothing.
    If a constant added to all scores of a prompt changes the loss, say so here. Source: TODO (author, year, equation).
    """

    kind, name = "reward_loss", "skeleton"
    margin: float = param(1.0, "TODO: what this parameter does", gt=0, allow_inf_nan=False)

    def examples(self, rankings):
        return list(rankings)

    def losses(self, scores_BK, ratings_BK, mask_BK):
        scores_BK = scores_BK.masked_fill(~mask_BK, 0.0)
        won_BKK = (ratings_BK[:, :, None] > ratings_BK[:, None, :]) & mask_BK[:, :, None] & mask_BK[:, None, :]
        losses_BKK = (self.margin - (scores_BK[:, :, None] - scores_BK[:, None, :])).clamp(min=0.0)
        return torch.where(won_BKK, losses_BKK, 0.0).sum((1, 2)) / won_BKK.sum((1, 2)).clamp(min=1)


@hookimpl
def register_components(register):
    register(Skeleton)
