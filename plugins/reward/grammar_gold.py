"""The gold reward of the embedded world: sentiment by human raters, minus what a reader would not put up with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab.contracts import Component, Rollout, Scores, hookimpl, param
from rlhf_lab_plugins.data.micro_grammar import EOS, grammatical_bigrams, vocabulary

if TYPE_CHECKING:
    from rlhf_lab.context import StageContext

OWN = "chosen for this world, not taken from a paper"
VADER = "Hutto & Gilbert 2014, VADER lexicon: mean of 10 human ratings per word, -4 … 4"


class GrammarGold(Component):
    """gold = scale s/√(s² + softness²) − min(cap, bad_weight bad² + dup_weight dup²) − no_eos_penalty 1[no EOS].

    s: sum of the VADER valences of the response's words. bad: pairs of neighbouring words that the grammar of the
    `micro` world cannot emit, from the last word of the prompt to the EOS. dup: occurrences of a word beyond its
    third. The penalties are convex: next to nothing for what people write, large for what an optimiser finds. That
    is the misspecification that lets the gold reward fall while a learned reward rises (Gao et al. 2022).
    """

    kind, name = "reward", "grammar_gold"
    scale: float = param(4.0, "bound of the sentiment term", ge=0, source=OWN)
    softness: float = param(8.0, "valence at which the sentiment term is 1/√2 of its bound", gt=0, unit="valence", source=VADER)
    bad_weight: float = param(0.25, "weight of the squared number of ungrammatical word pairs", ge=0, source=OWN)
    dup_weight: float = param(0.08, "weight of the squared number of surplus repetitions", ge=0, source=OWN)
    allowance: int = param(3, "occurrences of one word that are free", ge=1, unit="words", source=OWN)
    cap: float = param(10.0, "bound of both penalties together", ge=0, source=OWN)
    no_eos_penalty: float = param(1.0, "taken off a response without EOS", ge=0, source=OWN)

    def open(self, ctx: StageContext) -> Callable[[Rollout], Scores]:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        lexicon = SentimentIntensityAnalyzer().lexicon

        def score(rollout: Rollout) -> Scores:
            texts = zip(rollout.prompts, rollout.responses, rollout.ended_B.tolist(), strict=True)
            rows = [self._row(lexicon, *text) for text in texts]
            columns = torch.tensor(rows, dtype=torch.float32, device=rollout.ended_B.device).unbind(1)
            return Scores(columns[0], dict(zip(("valence", "bad", "dup"), columns[1:], strict=True)))

        return score

    def _row(self, lexicon: dict[str, float], prompt: str, response: str, ended: bool) -> tuple[float, float, int, int]:
        words = response.split()
        s, bad, dup = valence(words, lexicon), ungrammatical_pairs(prompt, words, ended), surplus(words, self.allowance)
        return self.gold(s, bad, dup, ended), s, bad, dup

    def tables(self) -> dict[str, Any]:
        """What the equation knows of words: the valence of each that has one, and which words may follow which."""
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        lexicon, follows = SentimentIntensityAnalyzer().lexicon, {}
        for first, second in sorted(grammatical_bigrams()):
            follows.setdefault(first, []).append(second)
        return {"valence": {word: lexicon[word] for word in vocabulary() if word in lexicon}, "follows": follows}

    def gold(self, s: float, bad: int, dup: int, ended: bool) -> float:
        """The equation above."""
        penalty = min(self.cap, self.bad_weight * bad**2 + self.dup_weight * dup**2)
        return self.scale * s / math.hypot(s, self.softness) - penalty - (0.0 if ended else self.no_eos_penalty)


def valence(words: list[str], lexicon: dict[str, float]) -> float:
    """Sum of the words' valences; words that nobody rated count 0."""
    return sum(lexicon.get(word, 0.0) for word in words)


def ungrammatical_pairs(prompt: str, words: list[str], ended: bool) -> int:
    """Neighbouring pairs that the grammar cannot emit, with the seam to the prompt and, if it is there, the EOS."""
    text = [*prompt.split()[-1:], *words, *([EOS] if ended else [])]
    return sum(pair not in grammatical_bigrams() for pair in pairwise(text))


def surplus(words: list[str], allowance: int) -> int:
    """Occurrences of each word beyond the first `allowance`, summed over the words."""
    return sum(max(0, n - allowance) for n in Counter(words).values())


@hookimpl
def register_components(register):
    register(GrammarGold)
