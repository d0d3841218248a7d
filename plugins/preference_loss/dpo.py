"""Direct preference optimisation, and the same for labels of which some are wrong."""

from torch.nn.functional import logsigmoid

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.preference_loss.pairs import margin, untied_pairs

PAPER = "Rafailov et al. 2023"


class DPO(Component):
    """L = −log σ(β(D_w − D_l)), D = log π(y|x) − log ref(y|x), nats per sequence, summed over the response tokens.

    The maximum likelihood of Bradley & Terry 1952 with the implicit reward β·D: where comparisons follow that model with
    reward r, the minimum is π* ∝ ref e^{r/β}, the optimum of RLHF at the same β. Source: Rafailov et al. 2023, eq. 7.
    """

    kind, name, needs = "preference_loss", "dpo", frozenset({"reference"})
    beta: float = param(0.1, "β: how much the policy is held to the reference", gt=0, allow_inf_nan=False, source=PAPER)

    def examples(self, rankings):
        return untied_pairs(rankings)

    def losses(self, batch):
        return -logsigmoid(self.beta * margin(batch.log_ratios_BK))


class ConservativeDPO(Component):
    """L = −(1−ε) log σ(β(D_w − D_l)) − ε log σ(β(D_l − D_w)), D the log-ratio to the reference in nats per sequence.

    ε is the assumed share of flipped labels; the minimum is at β(D_w − D_l) = log((1−ε)/ε) instead of infinity.
    Source: Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO", eq. 3.
    """

    kind, name, needs = "preference_loss", "cdpo", frozenset({"reference"})
    beta: float = param(0.1, "β: how much the policy is held to the reference", gt=0, allow_inf_nan=False, source=PAPER)
    flip: float = param(0.1, "ε, share of labels that are taken to be wrong", ge=0, lt=0.5)

    def examples(self, rankings):
        return untied_pairs(rankings)

    def losses(self, batch):
        margin_B = self.beta * margin(batch.log_ratios_BK)
        return -(1 - self.flip) * logsigmoid(margin_B) - self.flip * logsigmoid(-margin_B)


@hookimpl
def register_components(register):
    register(DPO)
    register(ConservativeDPO)
