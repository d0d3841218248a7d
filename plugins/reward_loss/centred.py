"""The pairwise loss with a pull of the scores towards 0."""

from torch.nn.functional import logsigmoid

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.reward_loss.pairs import mean_over_pairs, pairs


class Centred(Component):
    """−log σ(r_w − r_l) + c (r_w + r_l)², mean over the untied pairs of a prompt.

    Comparisons leave the scores free up to a constant; this fixes it softly. So a constant added to a prompt's scores does
    change this loss. Source: Eisenstein et al. 2023 (arXiv 2312.09244); TRL, center_rewards_coefficient.
    """

    kind, name = "reward_loss", "centred"
    coefficient: float = param(0.01, "c", ge=0, allow_inf_nan=False, source="TRL documentation of center_rewards_coefficient")

    def examples(self, rankings):
        return list(rankings)

    def losses(self, scores_BK, ratings_BK, mask_BK):
        (first, second), _, won_BKK = pairs(scores_BK, ratings_BK, mask_BK)
        return mean_over_pairs(self.coefficient * (first + second).square() - logsigmoid(first - second), won_BKK)


@hookimpl
def register_components(register):
    register(Centred)
