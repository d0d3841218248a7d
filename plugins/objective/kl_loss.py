"""The KL to the reference as a term of the loss."""

from rlhf_lab.contracts import Component, Loss, hookimpl, param
from rlhf_lab.rl.kl import Estimator, per_token


class KLLoss(Component):
    """L = β E[w k(D)] per token, D = log π(y_t) − log ref(y_t), β from the controller; `full`: k = KL(π‖ref) at the state.

    The gradient is not what the value suggests. For samples of π and w = 1, k1's has expectation 0, k2's is that of
    KL(π‖ref), k3's that of KL(ref‖π). With `importance_weight` each is that of KL(π‖ref), on policy and off: w = ρ = π/π_old
    for k1 and k3, whose expectation is the KL, and ρ without its gradient for k2; `full` needs none. `abs` stays biased.
    A token pays for its own state, not for those it leads to, so that with more than one token the optimum is
    π(v|s) ∝ ref(v|s) e^{Q(s,v)/β}, Q the score to be expected, and not that of the KL in the reward.
    Goes with `kl_placement: loss` (or both). Source: Shao et al. 2024, eqs. 3–4 (k3, w = 1); importance weight:
    DeepSeek-V3.2 (arXiv 2512.02556), as TRL.
    """

    kind, name = "objective", "kl_loss"
    weight: float = param(1.0, "weight in the loss, beside β", ge=0)
    estimator: Estimator = param("k2", "k", source="k3 in Shao et al. 2024, eq. 4")
    importance_weight: bool = param(True, "w as above, instead of 1")

    @property
    def needs(self):
        return frozenset({"beta", "ref_logprobs"} | ({"full_kl"} if self.estimator == "full" else set()))

    def loss(self, new, batch):
        kl_BT = per_token(self.estimator, new.logprobs_BT, batch.ref_logprobs_BT, batch.mask_BT, new.kl_BT)
        if self.importance_weight and self.estimator != "full":
            ratio_BT = (new.logprobs_BT - batch.old_logprobs_BT).exp()
            kl_BT = kl_BT * (ratio_BT.detach() if self.estimator == "k2" else ratio_BT)
        return Loss(batch.beta * batch.aggregate(kl_BT))


@hookimpl
def register_components(register):
    register(KLLoss)
