"""Another reward, less what a long response costs."""

from rlhf_lab.contracts import Component, Scores, hookimpl, param, slot
from rlhf_lab_plugins.reward.composed import Composed


class LengthPenalty(Component):
    """r − min(cap, c·max(0, n − free)), n the number of response tokens with the EOS. Column `length_penalty`, in score.

    DAPO's soft overlong punishment is free = L_max − L_cache, c = 1/L_cache, cap = 1 (Yu et al. 2025, eq. 13).
    """

    kind, name = "reward", "length_penalty"
    source: slot("reward") = param(..., "the reward that is shaped")
    coefficient: float = param(0.01, "c, score per token", ge=0, allow_inf_nan=False, unit="score per token")
    free: int = param(0, "tokens that cost nothing", ge=0, unit="tokens")
    cap: float | None = param(None, "largest penalty; default: none", gt=0, unit="score")

    def open(self, ctx):
        return Composed([self.source], ctx, self.score)

    def score(self, rollout, parts):
        (inner,) = parts
        penalty_B = (self.coefficient * (rollout.mask_BT.sum(1) - self.free).clamp(min=0)).clamp(max=self.cap or float("inf"))
        return Scores(inner.scores_B - penalty_B, {**inner.columns, "length_penalty": penalty_B})


@hookimpl
def register_components(register):
    register(LengthPenalty)
