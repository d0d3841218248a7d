"""The right answer as reward."""

from collections import defaultdict

import torch

from rlhf_lab.contracts import Component, Scores, hookimpl, param
from rlhf_lab.errors import DataError


class ExactMatch(Component):
    """1 where the response is a demonstration of its prompt, 0 elsewhere; white space is not compared.

    The answers are the demonstrations of both splits; a prompt without any is an error.
    """

    kind, name = "reward", "exact_match"
    ignore_case: bool = param(False, "upper and lower case are the same")

    def open(self, ctx):
        answers = defaultdict(set)
        for split in ("train", "validation"):
            for demonstration in ctx.data.demonstrations(split):
                answers[demonstration.prompt].add(self.plain(demonstration.completion))

        def score(rollout):
            if unknown := [prompt for prompt in rollout.prompts if prompt not in answers]:
                raise DataError(f"exact_match has no answer to {unknown[0]!r}; add a demonstration of it to the data")
            right = [self.plain(y) in answers[x] for x, y in zip(rollout.prompts, rollout.responses, strict=True)]
            return Scores(torch.tensor(right, dtype=torch.float32, device=rollout.mask_BT.device))

        return score

    def plain(self, text):
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


@hookimpl
def register_components(register):
    register(ExactMatch)
