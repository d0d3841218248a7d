"""A regular expression as reward."""

import re

import torch
from pydantic import field_validator

from rlhf_lab.contracts import Component, Scores, hookimpl, param


class Regex(Component):
    """`matched` where the pattern is found in the response, `otherwise` elsewhere. Python's `re`, dot matches newlines."""

    kind, name = "reward", "regex"
    pattern: str = param(..., "the regular expression", min_length=1, examples=["w1", "good|great"])
    whole: bool = param(False, "the whole response must match, not a part of it")
    matched: float = param(1.0, "score of a response that matches", allow_inf_nan=False)
    otherwise: float = param(0.0, "score of any other", allow_inf_nan=False)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return pattern

    def open(self, ctx):
        pattern = re.compile(self.pattern, re.DOTALL)
        found = pattern.fullmatch if self.whole else pattern.search

        def score(rollout):
            scores = [self.matched if found(text) else self.otherwise for text in rollout.responses]
            return Scores(torch.tensor(scores, dtype=torch.float32, device=rollout.mask_BT.device))

        return score


@hookimpl
def register_components(register):
    register(Regex)
