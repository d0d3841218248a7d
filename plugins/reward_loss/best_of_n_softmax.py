"""The loss for one choice out of several completions."""

import torch

from rlhf_lab.contracts import Component, hookimpl


class BestOfNSoftmax(Component):
    """−log Σ_{i ∈ best} e^{r_i} / Σ_i e^{r_i} over the K completions of a prompt: a person chose the best one of K.

    Only who is best counts, not the order of the others. Completions that tie for the best count as one choice, so a prompt
    on which all tie contributes nothing. K = 2 is the pairwise loss. Source: Ziegler et al. 2019, eq. 1 (K = 4).
    """

    kind, name = "reward_loss", "best_of_n_softmax"

    def examples(self, rankings):
        return list(rankings)

    def losses(self, scores_BK, ratings_BK, mask_BK):
        ratings_BK = ratings_BK.masked_fill(~mask_BK, -torch.inf)
        best_BK = ratings_BK == ratings_BK.amax(1, keepdim=True)
        scores_BK = scores_BK.masked_fill(~mask_BK, -torch.inf)
        return scores_BK.logsumexp(1) - scores_BK.masked_fill(~best_BK, -torch.inf).logsumexp(1)


@hookimpl
def register_components(register):
    register(BestOfNSoftmax)
