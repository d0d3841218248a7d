"""Several reward models as one, more careful than any of them."""

from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator

from rlhf_lab.contracts import Component, Scores, StageRef, hookimpl, param, slot
from rlhf_lab_plugins.reward.composed import Composed


def combined(scores_KB, how, coefficient):
    """mean: (1/K) Σ r_i. worst_case: min_i r_i. uncertainty_weighted: mean − λ (1/K) Σ (r_i − mean)².

    The last is the population variance, not the standard deviation (Coste et al. 2023).
    """
    if how == "worst_case":
        return scores_KB.amin(0)
    penalty_B = coefficient * scores_KB.var(0, correction=0) if how == "uncertainty_weighted" else 0.0
    return scores_KB.mean(0) - penalty_B


def copies(members, info):
    """A number K as K reward models: the stage, and copies of it whose seeds are 1, 2, … higher."""
    if not isinstance(members, int) or isinstance(members, bool):
        return members
    stage = info.data.get("stage") or "reward_model"
    return [{"name": "reward_model", "stage": stage if i == 0 else f"{stage}@{i}"} for i in range(members)]


class Ensemble(Component):
    """Mean of K rewards, their minimum, or their mean minus λ times their population variance.

    `members: 5` are five reward models that differ by seed, so by head and order of the data: stage `reward_model` and its
    copies `reward_model@1` … `@4`, which are trained because they are named. A list names any rewards; they should be in
    one unit (the reward model's `normalize`). Columns `member_0` … and `member_variance`, in score and squared score.
    Source: Coste et al. 2023 (arXiv 2310.02743), K = 5.
    """

    kind, name = "reward", "ensemble"
    stage: StageRef | None = param(None, "with a number of members: the stage that they are; default: reward_model")
    members: Annotated[list[slot("reward")], BeforeValidator(copies)] = param(
        5, "the rewards: a list, or how many copies of the stage", min_length=2, source="Coste et al. 2023: 5"
    )
    how: Literal["mean", "worst_case", "uncertainty_weighted"] = param("worst_case", "how they become one")
    coefficient: float = param(
        0.5,
        "λ, of uncertainty_weighted",
        ge=0,
        allow_inf_nan=False,
        unit="1/score",
        source="Coste et al. 2023: best for best-of-n",
    )

    def open(self, ctx):
        return Composed(self.members, ctx, self.score)

    def score(self, rollout, parts):
        scores_KB = torch.stack([part.scores_B for part in parts])
        columns = {f"member_{i}": scores_B for i, scores_B in enumerate(scores_KB)}
        variance = {"member_variance": scores_KB.var(0, correction=0)}
        return Scores(combined(scores_KB, self.how, self.coefficient), columns | variance)


@hookimpl
def register_components(register):
    register(Ensemble)
