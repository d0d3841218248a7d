"""Hinge losses: pairs that are far enough apart are left alone."""

from torch import relu

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.preference_loss.pairs import margin, untied_pairs


class Hinge(Component):
    """L = max(0, 1 − β(D_w − D_l)), D = log π(y|x) − log ref(y|x), nats per sequence.

    SLiC's hinge on normalised likelihoods: Liu et al. 2023 (RSO, arXiv 2309.06657), eq. 11.
    """

    kind, name, needs = "preference_loss", "hinge", frozenset({"reference"})
    beta: float = param(0.05, "β: pairs further apart than 1/β nats are left alone", gt=0, allow_inf_nan=False,
                        source="Liu et al. 2023, 4: γ = 0.05")  # fmt: skip

    def examples(self, rankings):
        return untied_pairs(rankings)

    def losses(self, batch):
        return relu(1 - self.beta * margin(batch.log_ratios_BK))


class SLiC(Component):
    """L = max(0, δ − log π(y_w|x) + log π(y_l|x)) − λ log π(y_w|x), nats per sequence, without a reference model.

    The second term keeps the policy where text is likely; the paper has there the target of fine-tuning, here it is the
    preferred response, so that a constant added to both log-probs changes the loss by −λ times as much.
    Source: Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), eq. 2.
    """

    kind, name = "preference_loss", "slic"
    delta: float = param(1.0, "δ: pairs further apart are left alone", gt=0, unit="nats per sequence")
    weight: float = param(0.01, "λ, weight of the likelihood of the preferred response", ge=0)

    def examples(self, rankings):
        return untied_pairs(rankings)

    def losses(self, batch):
        return relu(self.delta - margin(batch.logprobs_BK)) - self.weight * batch.logprobs_BK[:, 0]


@hookimpl
def register_components(register):
    register(Hinge)
    register(SLiC)
