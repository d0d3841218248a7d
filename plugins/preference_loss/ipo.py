"""Identity preference optimisation: a square in place of the logistic."""

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.preference_loss.pairs import margin, untied_pairs


class IPO(Component):
    """L = (D_w − D_l − 1/(2β))², D = log π(y|x) − log ref(y|x), nats per sequence; β is the paper's τ.

    The target is a finite margin, so that unanimous pairs do not pull for ever. Where π may be any law, the minimum is
    π* ∝ ref e^{p/β} with p(y) = P(y is preferred to a draw from the law of the data). The paper and its authors' later code
    (Huang et al. 2024's too) disagree on D: sums over the response, or, with `per_token`, means over it, as TRL has it; then
    it matters for the margin how long the responses are, and a constant added to both sums no longer cancels.
    Source: Azar et al. 2024, eq. 17.
    """

    kind, name, needs = "preference_loss", "ipo", frozenset({"reference"})
    beta: float = param(0.1, "τ: the margin that is aimed at is 1/(2β)", gt=0, allow_inf_nan=False, source="TRL DPOConfig")
    per_token: bool = param(False, "log-ratios are means over the response tokens", source="true: TRL, by word of the authors")

    def examples(self, rankings):
        return untied_pairs(rankings)

    def losses(self, batch):
        log_ratios_BK = batch.log_ratios_BK / batch.lengths_BK if self.per_token else batch.log_ratios_BK
        return (margin(log_ratios_BK) - 1 / (2 * self.beta)).square()


@hookimpl
def register_components(register):
    register(IPO)
