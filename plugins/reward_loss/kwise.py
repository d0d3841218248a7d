"""Losses on ranked completions, by pairs."""

import itertools

import torch
from torch.nn.functional import logsigmoid

from rlhf_lab.contracts import Component, Ranking, hookimpl


def pairwise_losses(scores_BK, ratings_BK, mask_BK):
    """(1/#pairs) Σ over untied pairs of −log σ(r_w − r_l), for each prompt; 0 where all ratings tie.

    Bradley & Terry 1952; Ouyang et al. 2022, eq. 1, with ties dropped from the sum and from its count.
    """
    real_BKK = mask_BK[:, :, None] & mask_BK[:, None, :]
    won_BKK = (ratings_BK[:, :, None] > ratings_BK[:, None, :]) & real_BKK
    scores_BK = scores_BK.masked_fill(~mask_BK, 0.0)
    losses_BKK = -logsigmoid(scores_BK[:, :, None] - scores_BK[:, None, :])
    return torch.where(won_BKK, losses_BKK, 0.0).sum((1, 2)) / won_BKK.sum((1, 2)).clamp(min=1)


class KWise(Component):
    """−(1/C(K,2)) Σ_pairs log σ(r_w − r_l), all pairs of a prompt in one batch element.

    Ties are dropped; K = 2 is the pairwise loss. Source: Ouyang et al. 2022, eq. 1 and C.2.
    """

    kind, name = "reward_loss", "kwise"

    def examples(self, rankings):
        return list(rankings)

    def losses(self, scores_BK, ratings_BK, mask_BK):
        return pairwise_losses(scores_BK, ratings_BK, mask_BK)


class Pairwise(Component):
    """−log σ(r_w − r_l) with each pair an example of its own, shuffled with all others.

    Source: Christiano et al. 2017, eq. 1; Stiennon et al. 2020, 3.4. On rankings with K > 2 every completion is seen in
    K − 1 batches, which Ouyang et al. 2022 (3.5) found to overfit within one epoch.
    """

    kind, name = "reward_loss", "pairwise"

    def examples(self, rankings):
        return [
            Ranking(
                r.prompt,
                (r.completions[i], r.completions[j]),
                (r.ratings[i], r.ratings[j]),
                r.ended and (r.ended[i], r.ended[j]),
            )
            for r in rankings
            for i, j in itertools.combinations(range(len(r.completions)), 2)
            if r.ratings[i] != r.ratings[j]
        ]

    def losses(self, scores_BK, ratings_BK, mask_BK):
        return pairwise_losses(scores_BK, ratings_BK, mask_BK)


@hookimpl
def register_components(register):
    register(KWise)
    register(Pairwise)
