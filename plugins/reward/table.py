"""A reward that is a table: any number for any response."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from rlhf_lab.contracts import Component, Rollout, Scores, hookimpl, param
from rlhf_lab.streams import stream

if TYPE_CHECKING:
    from rlhf_lab.context import StageContext


class Table(Component):
    """score(x, y) = scores[y] where the table has it, else scale · z(x, y), z ~ N(0, 1) drawn once for each pair.

    z comes from the random stream (seed, "reward_table", crc32 of prompt, newline, response): the same on every machine, and
    nothing has to be listed before it is asked for.
    """

    kind, name = "reward", "table"
    scores: dict[str, float] = param({}, "score of a response text, whatever the prompt")
    scale: float = param(1.0, "standard deviation of the scores of all other responses", ge=0, allow_inf_nan=False)
    seed: int = param(0, "of the drawn scores, whatever the seed of the run", ge=0)

    def open(self, ctx: StageContext) -> Callable[[Rollout], Scores]:
        def score(rollout: Rollout) -> Scores:
            pairs = zip(rollout.prompts, rollout.responses, strict=True)
            scores = [self.scores.get(y, self.scale * drawn(self.seed, x, y)) for x, y in pairs]
            return Scores(torch.tensor(scores, dtype=torch.float32, device=rollout.mask_BT.device))

        return score


@lru_cache(maxsize=2**16)
def drawn(seed: int, prompt: str, response: str) -> float:
    """z(x, y)."""
    return float(stream(seed, "reward_table", zlib.crc32(f"{prompt}\n{response}".encode())).standard_normal())


@hookimpl
def register_components(register):
    register(Table)
