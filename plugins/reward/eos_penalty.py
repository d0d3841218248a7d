"""Another reward, changed where the response never ended."""

from pydantic import model_validator

from rlhf_lab.contracts import Component, Scores, hookimpl, param, slot
from rlhf_lab.rl.rewards import without_eos
from rlhf_lab_plugins.reward.composed import Composed


class EOSPenalty(Component):
    """Where there is no EOS: `score` instead of r, or r − `penalty`; r elsewhere. Column `before_eos_penalty`.

    As the loop's `no_eos_score` and `no_eos_penalty`, but at a place of its own among other wrappers, and part of what an
    evaluation reports. Source: Huang et al. 2024, "EOS trick" (score −1); TRL, missing_eos_penalty.
    """

    kind, name = "reward", "eos_penalty"
    source: slot("reward") = param(..., "the reward that is shaped")
    score: float | None = param(None, "what stands in place of r", allow_inf_nan=False, source="−1 in Huang et al. 2024")
    penalty: float | None = param(None, "what is taken off r", gt=0, allow_inf_nan=False, source="TRL, missing_eos_penalty")

    @model_validator(mode="after")
    def _one_of_two(self):
        if (self.score is None) == (self.penalty is None):
            raise ValueError("eos_penalty needs score or penalty, and not both")
        return self

    def open(self, ctx):
        return Composed([self.source], ctx, self.shaped)

    def shaped(self, rollout, parts):
        (inner,) = parts
        scores_B = without_eos(inner.scores_B, rollout.ended_B, score=self.score, penalty=self.penalty or 0.0)
        return Scores(scores_B, {**inner.columns, "before_eos_penalty": inner.scores_B})


@hookimpl
def register_components(register):
    register(EOSPenalty)
