"""The length of a response as a reward: to shape another reward, to measure length bias, to test a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rlhf_lab.contracts import Component, Rollout, Scores, hookimpl, param

if TYPE_CHECKING:
    from rlhf_lab.context import StageContext


class Length(Component):
    """score = weight · n, or −weight · |n − target| where a target is given; n counts the response tokens with the EOS."""

    kind, name = "reward", "length"
    weight: float = param(1.0, "score per response token; negative rewards short responses", unit="1/token")
    target: int | None = param(None, "length that scores best; none rewards every token", ge=0, unit="tokens")

    def open(self, ctx: StageContext) -> Callable[[Rollout], Scores]:
        def score(rollout: Rollout) -> Scores:
            n_B = rollout.mask_BT.sum(1).float()
            return Scores(self.weight * n_B if self.target is None else -self.weight * (n_B - self.target).abs())

        return score


@hookimpl
def register_components(register):
    register(Length)
