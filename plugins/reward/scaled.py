"""Another reward in units of its own running standard deviation."""

import math

from rlhf_lab.contracts import Component, Scores, hookimpl, param, slot
from rlhf_lab_plugins.reward.composed import Composed


def merged_moments(count, mean, m2, scores_B):
    """Count, mean and sum of squared deviations of two samples together (Chan, Golub & LeVeque 1979)."""
    n, other = len(scores_B), scores_B.double().mean().item()
    total, delta = count + n, other - mean
    own = (scores_B.double() - other).square().sum().item()
    return total, mean + delta * n / total, m2 + own + delta**2 * count * n / total


class Scaled(Component):
    """(r − μ)/σ, or r/σ without `shift_mean`; μ, σ over all scores of earlier batches, of the first batch itself in that.

    So a score depends on the past but, except in the first batch, not on its neighbours. σ has ddof 0 and at least `floor`.
    What is evaluated changes neither. Column `unscaled`. State: `count`, `mean`, `m2`.
    Source: Zheng et al. 2023 (PPO-max), section 5.3.1: r/σ and (r − μ)/σ with running moments.
    """

    kind, name = "reward", "scaled"
    source: slot("reward") = param(..., "the reward that is scaled")
    shift_mean: bool = param(True, "subtract μ")
    floor: float = param(1e-4, "smallest σ that is divided by", gt=0, unit="score")

    def open(self, ctx):
        return RunningScale(self.source, ctx, self.floor, self.form)

    def form(self, scores_B, mean, deviation):
        return (scores_B - (mean if self.shift_mean else 0.0)) / deviation


class RunningScale(Composed):
    """The live scorer with its moments: `form(scores_B, mean, deviation)` of the scores of one source."""

    def __init__(self, source, ctx, floor, form):
        super().__init__([source], ctx, self.score)
        self.floor, self.form, self.moments = floor, form, (0, 0.0, 0.0)

    def score(self, rollout, parts):
        (inner,) = parts
        after = merged_moments(*self.moments, inner.scores_B)
        count, mean, m2 = self.moments if self.moments[0] else after
        self.moments = after
        deviation = max(math.sqrt(m2 / count), self.floor)
        return Scores(self.form(inner.scores_B, mean, deviation), {**inner.columns, "unscaled": inner.scores_B})

    def state_dict(self):
        return {**super().state_dict(), **dict(zip(("count", "mean", "m2"), self.moments, strict=True))}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.moments = (state["count"], state["mean"], state["m2"])


@hookimpl
def register_components(register):
    register(Scaled)
