"""A trained reward model as reward source."""

import torch

from rlhf_lab.contracts import Component, Scores, StageRef, hookimpl, param
from rlhf_lab.lm.precision import ready
from rlhf_lab.lm.scalar import load_scalar_model
from rlhf_lab.lm.tokens import trim


class LearnedReward(Component):
    """r(x, y) of a reward_model stage, normalised as that stage decided. Reads the token ids that the policy sampled."""

    kind, name = "reward", "reward_model"
    stage: StageRef = param("reward_model", "the stage that trained it")
    microbatch_size: int | None = param(None, "sequences per forward pass; changes memory, not numbers", ge=1)

    def open(self, ctx):
        model = load_scalar_model(ctx.input(self.stage)).requires_grad_(False).eval().to(ctx.device)
        ready(model.backbone, ctx, frozen=True)

        @torch.no_grad()
        def score(rollout):
            parts = torch.arange(len(rollout)).split(self.microbatch_size or len(rollout))
            return Scores(torch.cat([model.scores(trim(rollout.rows(rows))).float() for rows in parts]))

        return score


@hookimpl
def register_components(register):
    register(LearnedReward)
