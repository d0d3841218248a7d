"""Another reward, bounded."""

from pydantic import model_validator

from rlhf_lab.contracts import Component, Scores, hookimpl, param, slot
from rlhf_lab_plugins.reward.composed import Composed


class Clipped(Component):
    """min(max(r, low), high). Column `unclipped`. Wrappers apply from the inside out: clip of scale is not scale of clip.

    Source: Zheng et al. 2023 (PPO-max), section 5.3.1; bounds as in MOSS-RLHF's code.
    """

    kind, name = "reward", "clipped"
    source: slot("reward") = param(..., "the reward that is clipped")
    low: float = param(-10.0, "smallest score", source="MOSS-RLHF, reward_clip 10")
    high: float = param(10.0, "largest score", source="MOSS-RLHF, reward_clip 10")

    @model_validator(mode="after")
    def _low_is_below_high(self):
        if not self.low < self.high:
            raise ValueError(f"clipped needs low < high, not {self.low:g} and {self.high:g}")
        return self

    def open(self, ctx):
        return Composed([self.source], ctx, self.score)

    def score(self, rollout, parts):
        (inner,) = parts
        return Scores(inner.scores_B.clamp(self.low, self.high), {**inner.columns, "unclipped": inner.scores_B})


@hookimpl
def register_components(register):
    register(Clipped)
