"""The pairwise loss with a margin that grows with the difference of the ratings."""

from torch.nn.functional import logsigmoid

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.reward_loss.pairs import mean_over_pairs, pairs


class Margin(Component):
    """−log σ(r_w − r_l − m), m = margin · (rating_w − rating_l), mean over the untied pairs of a prompt.

    Clearly better must score clearly higher. margin 0 is `kwise`. In units of the score.
    Source: Touvron et al. 2023 (Llama 2), eq. 2, where m is a step function of the rating.
    """

    kind, name = "reward_loss", "margin"
    margin: float = param(
        1.0, "score difference that is asked for per unit of rating", ge=0, allow_inf_nan=False, unit="score per rating"
    )

    def examples(self, rankings):
        return list(rankings)

    def losses(self, scores_BK, ratings_BK, mask_BK):
        (first, second), (higher, lower), won_BKK = pairs(scores_BK, ratings_BK, mask_BK)
        return mean_over_pairs(-logsigmoid(first - second - self.margin * (higher - lower)), won_BKK)


@hookimpl
def register_components(register):
    register(Margin)
