"""Odds-ratio preference optimisation: fine-tuning and preference in one loss."""

import torch
from torch.nn.functional import logsigmoid

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.preference_loss.pairs import margin, untied_pairs


def log_odds(mean_logprobs):
    """log(p/(1−p)) for p = e^(mean log-prob), without cancellation at either end."""
    near_one = mean_logprobs > -0.6931471805599453
    small = torch.where(near_one, -1.0, mean_logprobs)
    large = torch.where(near_one, mean_logprobs, -0.5)
    return mean_logprobs - torch.where(near_one, torch.log(-torch.expm1(large)), torch.log1p(-torch.exp(small)))


class ORPO(Component):
    """L = −log p_w − λ log σ(log odds_w − log odds_l), p = exp(log π(y|x) / |y|), odds = p/(1−p); no reference model.

    The first term is the fine-tuning loss of the preferred response, in nats per token, the mean over the pairs of a batch
    (TRL and the authors' code: over all its tokens, those of the prompt included). No constant added to log-probs cancels.
    Source: Hong et al. 2024 (arXiv 2403.07691), eqs. 4–7.
    """

    kind, name = "preference_loss", "orpo"
    weight: float = param(
        0.1, "λ, weight of the odds ratio", gt=0, allow_inf_nan=False, source="Hong et al. 2024, Mistral-ORPO"
    )

    def examples(self, rankings):
        return untied_pairs(rankings)

    def losses(self, batch):
        means_BK = batch.logprobs_BK / batch.lengths_BK
        return -means_BK[:, 0] - self.weight * logsigmoid(margin(log_odds(means_BK)))


@hookimpl
def register_components(register):
    register(ORPO)
