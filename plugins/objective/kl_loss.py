"""The KL to the reference as a term of the loss."""

from typing import Literal

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab.errors import SpecError
from rlhf_lab.kl import ESTIMATORS


class KLLoss(Component):
    """L = E[w k(D)], D = log π(y_t) − log ref(y_t), per token; the coefficient β is this term's `weight`.

    Gradients differ from what the values suggest (samples of π, w = 1): k1's has expectation 0, k2's is that of KL(π‖ref),
    k3's is that of KL(ref‖π). With `importance_weight` w = ρ = π/π_old, with its gradient: k1 and k3 then give that of
    KL(π‖ref), off policy too. Goes with `kl: none`; KL in the reward as well is refused unless `also_in_reward`.
    Source: Shao et al. 2024, eqs. 3–4 (k3, 0.04); importance weight: DeepSeek-V3.2 (arXiv 2512.02556), as TRL.
    """

    kind, name, needs = "objective", "kl_loss", frozenset({"ref_logprobs"})
    weight: float = param(0.04, "β, loss per nat and token", ge=0, source="Shao et al. 2024, section 4.2")
    estimator: Literal["k1", "k2", "k3", "abs"] = param("k2", "k", source="k3 in Shao et al. 2024, eq. 4")
    importance_weight: bool = param(False, "w = ρ instead of 1")
    also_in_reward: bool = param(False, "allow a KL in the reward beside this one")

    def loss(self, new, batch):
        if batch.beta > 0 and not self.also_in_reward:
            raise SpecError(
                f"the KL is in the loss and, with β = {batch.beta:g}, in the reward; set kl: none, or also_in_reward"
            )
        kl_BT = ESTIMATORS[self.estimator](new.logprobs_BT - batch.ref_logprobs_BT)
        if self.importance_weight:
            kl_BT = (new.logprobs_BT - batch.old_logprobs_BT).exp() * kl_BT
        return Loss(batch.aggregate(kl_BT))


@hookimpl
def register_components(register):
    register(KLLoss)
