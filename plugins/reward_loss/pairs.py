"""All pairs of a prompt's completions, and the mean over those that do not tie."""

import torch


def pairs(scores_BK, ratings_BK, mask_BK):
    """Scores and ratings of (first, second) for every ordered pair, and won_BKK: first is rated higher, both are real."""
    real_BKK = mask_BK[:, :, None] & mask_BK[:, None, :]
    scores_BK = scores_BK.masked_fill(~mask_BK, 0.0)
    ratings_BK = ratings_BK.masked_fill(~mask_BK, 0.0)
    won_BKK = (ratings_BK[:, :, None] > ratings_BK[:, None, :]) & real_BKK
    return (scores_BK[:, :, None], scores_BK[:, None, :]), (ratings_BK[:, :, None], ratings_BK[:, None, :]), won_BKK


def mean_over_pairs(losses_BKK, won_BKK):
    """losses_B: the mean over a prompt's untied pairs, 0 where all tie."""
    return torch.where(won_BKK, losses_BKK, 0.0).sum((1, 2)) / won_BKK.sum((1, 2)).clamp(min=1)
