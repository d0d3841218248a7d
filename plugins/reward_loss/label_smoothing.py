"""The pairwise loss for labels of which some are wrong."""

from torch.nn.functional import logsigmoid

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.reward_loss.pairs import mean_over_pairs, pairs


class LabelSmoothing(Component):
    """−(1−ε) log σ(r_w − r_l) − ε log σ(r_l − r_w), mean over the untied pairs of a prompt.

    ε is the assumed share of flipped labels; the minimum is at r_w − r_l = log((1−ε)/ε) instead of infinity.
    Source: Szegedy et al. 2016, section 7; for preferences Mitchell 2023 (conservative DPO), and Wang et al. 2024
    (arXiv 2401.06080).
    """

    kind, name = "reward_loss", "label_smoothing"
    flip: float = param(0.1, "ε, share of labels that are taken to be wrong", ge=0, lt=0.5)

    def examples(self, rankings):
        return list(rankings)

    def losses(self, scores_BK, ratings_BK, mask_BK):
        (first, second), _, won_BKK = pairs(scores_BK, ratings_BK, mask_BK)
        right, wrong = logsigmoid(first - second), logsigmoid(second - first)
        return mean_over_pairs(-(1 - self.flip) * right - self.flip * wrong, won_BKK)


@hookimpl
def register_components(register):
    register(LabelSmoothing)
