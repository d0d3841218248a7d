"""TODO: one line on what this reward is."""

import torch

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import Scores


class Skeleton(Component):
    """value · (number of words of the response that were not said before). TODO: what is scored, and in which unit.

    `open(ctx)` runs once: load models and files there (`ctx.input(stage)` is the folder of another stage), then return a
    function from a rollout to Scores. A score may not depend on the other responses of its batch. Further numbers per
    response are columns of the tables.
    """

    kind, name = "reward", "skeleton"
    value: float = param(1.0, "TODO: what this parameter does", allow_inf_nan=False)

    def open(self, ctx):
        def score(rollout):
            words = torch.tensor([len(set(text.split())) for text in rollout.responses], dtype=torch.float32)
            return Scores((self.value * words).to(rollout.mask_BT.device), {"different_words": words})

        return score


@hookimpl
def register_components(register):
    register(Skeleton)
