"""Simple preference optimisation: mean log-probs, a margin, and no reference."""

from torch.nn.functional import logsigmoid

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab_plugins.preference_loss.pairs import margin, untied_pairs

CODE = "princeton-nlp/SimPO, training_configs/mistral-7b-base-simpo.yaml"


class SimPO(Component):
    """L = −log σ(β/|y_w| log π(y_w|x) − β/|y_l| log π(y_l|x) − γ), |y| in tokens; no reference model.

    A constant added to both sums does not cancel unless the responses are of one length. Source: Meng et al. 2024
    (arXiv 2405.14734), eq. 6.
    """

    kind, name = "preference_loss", "simpo"
    beta: float = param(2.0, "β: scale of the mean log-prob", gt=0, allow_inf_nan=False, source=CODE)
    gamma: float = param(1.6, "γ: margin that is aimed at", ge=0, allow_inf_nan=False, source=CODE)

    def examples(self, rankings):
        return untied_pairs(rankings)

    def losses(self, batch):
        return -logsigmoid(self.beta * margin(batch.logprobs_BK / batch.lengths_BK) - self.gamma)


@hookimpl
def register_components(register):
    register(SimPO)
