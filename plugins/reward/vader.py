"""Rule-based sentiment as a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from rlhf_lab.contracts import Component, Rollout, Scores, hookimpl, param

if TYPE_CHECKING:
    from rlhf_lab.context import StageContext


class Vader(Component):
    """VADER's compound score of the text, from −1 (most negative) to 1 (Hutto & Gilbert 2014)."""

    kind, name = "reward", "vader"
    include_prompt: bool = param(False, "score prompt and response, joined by a blank, instead of the response alone")

    def open(self, ctx: StageContext) -> Callable[[Rollout], Scores]:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        analyzer = SentimentIntensityAnalyzer()

        def score(rollout: Rollout) -> Scores:
            compounds = [analyzer.polarity_scores(text)["compound"] for text in self._texts(rollout)]
            return Scores(torch.tensor(compounds, dtype=torch.float32, device=rollout.mask_BT.device))

        return score

    def _texts(self, rollout: Rollout) -> list[str]:
        if not self.include_prompt:
            return list(rollout.responses)
        return [f"{x} {y}" for x, y in zip(rollout.prompts, rollout.responses, strict=True)]


@hookimpl
def register_components(register):
    register(Vader)
