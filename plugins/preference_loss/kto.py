"""Kahneman–Tversky optimisation: single responses that were found good or bad."""

import torch

from rlhf_lab.contracts import Component, Ranking, hookimpl, param
from rlhf_lab.errors import DataError
from rlhf_lab_plugins.preference_loss.pairs import untied_pairs

PAPER = "Ethayarajh et al. 2024; ContextualAI/HALOs, config/loss/kto.yaml"


class KTO(Component):
    """L = λ_D (1 − σ(β(D − z₀))) for a desirable response, λ_U (1 − σ(β(z₀ − D))) for an undesirable one.

    D = log π(y|x) − log ref(y|x), nats per sequence. z₀ = max(0, mean D of the batch's responses, each to the prompt of its
    neighbour), an estimate of KL(π‖ref) that is biased and takes no gradient. By default the preferred response of each
    untied pair is desirable and the other is not; with `desirable_above` a rating says so, and no pairs are needed.
    Source: Ethayarajh et al. 2024 (arXiv 2402.01306), eqs. 7–8.
    """

    kind, name, needs = "preference_loss", "kto", frozenset({"reference", "mismatched"})
    beta: float = param(0.1, "β: risk aversion, and how much the policy is held to the reference", gt=0, allow_inf_nan=False,
                        source=PAPER)  # fmt: skip
    desirable_weight: float = param(1.0, "λ_D", gt=0, source=PAPER)
    undesirable_weight: float = param(1.0, "λ_U", gt=0, source=PAPER)
    desirable_above: float | None = param(None, "responses rated higher are desirable, all others are not; default: by pairs")

    def examples(self, rankings):
        return self.by_pairs(rankings) if self.desirable_above is None else self.by_rating(rankings)

    def by_pairs(self, rankings):
        return [
            Ranking(pair.prompt, (pair.completions[k],), (pair.ratings[k],), pair.ended and (pair.ended[k],))
            for pair in untied_pairs(rankings)
            for k in (0, 1)
        ]

    def by_rating(self, rankings):
        return [
            Ranking(r.prompt, (completion,), (float(rating > self.desirable_above),), r.ended and (r.ended[k],))
            for r in rankings
            for k, (completion, rating) in enumerate(zip(r.completions, r.ratings, strict=True))
        ]

    def baseline(self, log_ratios_B, preferred_B):
        """z₀ of a whole batch, from mismatched responses."""
        if len(classes := set(preferred_B.tolist())) == 1:
            which = "desirable" if classes.pop() else "undesirable"
            raise DataError(
                f"kto learns from desirable and undesirable responses, but in a batch of {len(preferred_B)} all are {which}; "
                f"set another batch_size, or give it both kinds"
            )
        return log_ratios_B.mean().clamp(min=0)

    def losses(self, batch):
        gain_B = self.beta * (batch.log_ratios_BK - batch.baseline).squeeze(1)
        desirable_B = self.desirable_weight * (1 - gain_B.sigmoid())
        undesirable_B = self.undesirable_weight * (1 - (-gain_B).sigmoid())
        return torch.where(batch.preferred_BK.squeeze(1), desirable_B, undesirable_B)


@hookimpl
def register_components(register):
    register(KTO)
