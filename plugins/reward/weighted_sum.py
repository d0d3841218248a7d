"""Several rewards, each with a weight."""

from pydantic import model_validator

from rlhf_lab.contracts import Component, Scores, hookimpl, param, slot
from rlhf_lab_plugins.reward.composed import Composed


class WeightedSum(Component):
    """r = Σ_i w_i r_i. Columns `part_0_<name>` … hold r_i before its weight, in the source's own unit."""

    kind, name = "reward", "weighted_sum"
    sources: list[slot("reward")] = param(..., "the rewards", min_length=1)
    weights: list[float] = param(..., "w, one for each source", min_length=1)

    @model_validator(mode="after")
    def _one_weight_each(self):
        if len(self.weights) != len(self.sources):
            raise ValueError(f"there are {len(self.sources)} sources and {len(self.weights)} weights; give one weight for each")
        return self

    def open(self, ctx):
        return Composed(self.sources, ctx, self.score)

    def score(self, rollout, parts):
        total_B = sum(weight * part.scores_B for weight, part in zip(self.weights, parts, strict=True))
        named = enumerate(zip(self.sources, parts, strict=True))
        return Scores(total_B, {f"part_{i}_{source.name}": part.scores_B for i, (source, part) in named})


@hookimpl
def register_components(register):
    register(WeightedSum)
