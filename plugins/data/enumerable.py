"""A world small enough to enumerate: at most eight tokens, at most four of them in a response, a few prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import model_validator

from rlhf_lab.contracts import Component, Demonstration, Ranking, hookimpl, param
from rlhf_lab.errors import DataError
from rlhf_lab.proof import exact

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from rlhf_lab.context import StageContext

EOS = "<eos>"
LETTERS = "abcdefg"
SPLITS = ("train", "validation")


class Enumerable(Component):
    """Words `a`, `b`, … and an EOS, and nothing else: no padding token, so that no mask may come from one.

    The language is a table of next-token logits drawn from N(0, spread²), one row for each context. Demonstrations are
    drawn from it, given that they end; model `tabular` is that table itself. Both splits have the same prompts, since
    everything can be known about them. Exact KL, rewards and gradients: `rlhf_lab/proof/exact.py`.
    """

    kind, name = "data", "enumerable"
    words: int = param(3, "words besides the EOS", ge=1, le=exact.LARGEST_VOCABULARY - 1)
    length: int = param(3, "longest response, its EOS included", ge=1, le=exact.LARGEST_LENGTH, unit="tokens")
    prompts: list[str] = param(["a", "b a"], "of one or two words, separated by a blank", min_length=1)
    demonstrations: int = param(512, "in each split", ge=1)
    spread: float = param(1.0, "standard deviation of the language's logits; 0 is uniform", ge=0, allow_inf_nan=False)
    seed: int = param(0, "of the language and its demonstrations, whatever the seed of the run", ge=0)

    @model_validator(mode="after")
    def _prompts_are_of_this_world(self) -> Enumerable:
        known = LETTERS[: self.words]
        for prompt in self.prompts:
            if not (1 <= len(prompt.split()) <= 2 and set(prompt.split()) <= set(known)):
                raise ValueError(f"the prompt {prompt!r} must be one or two of the words {' '.join(known)}")
        return self

    def open(self, ctx: StageContext) -> EnumerableWorld:
        return EnumerableWorld(self)


@dataclass(frozen=True)
class EnumerableWorld:
    """The open data set, and the law that wrote it."""

    params: Enumerable

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (EOS, *LETTERS[: self.params.words])

    @property
    def space(self) -> exact.Space:
        """All responses."""
        return exact.enumerate_space(len(self.vocabulary), self.params.length)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and the longest response together."""
        return max(len(prompt.split()) for prompt in self.params.prompts) + self.params.length

    def language(self) -> Tensor:
        """logits_CV: a row for each context, numbered by `exact.context_code`."""
        shape = exact.n_contexts(len(self.vocabulary), self.context - 1), len(self.vocabulary)
        return torch.from_numpy(np.random.default_rng([self.params.seed, 0]).normal(0.0, self.params.spread, shape))

    def logprobs(self, prompt: str) -> Tensor:
        """logprobs_SV of the language after `prompt`, in float64."""
        ids, table_CV = tuple(map(self.vocabulary.index, prompt.split())), self.language().log_softmax(-1)
        return exact.tabulate(lambda prefix: table_CV[exact.context_code(ids + prefix, len(self.vocabulary))], self.space)

    def prompts(self, split: str) -> list[str]:
        self._number(split)
        return list(self.params.prompts)

    def demonstrations(self, split: str) -> list[Demonstration]:
        """Each prompt in turn, with a response that ends."""
        rng, ended_N = np.random.default_rng([self.params.seed, 1, self._number(split)]), self.space.ended_N
        cumulative = {}
        for prompt in self.params.prompts:
            logprobs_N = exact.response_logprobs(self.logprobs(prompt), self.space)
            cumulative[prompt] = logprobs_N.masked_fill(~ended_N, -torch.inf).softmax(-1).cumsum(-1).numpy()
        prompts = [self.params.prompts[i % len(self.params.prompts)] for i in range(self.params.demonstrations)]
        return [Demonstration(prompt, self._text(cumulative[prompt], rng.random())) for prompt in prompts]

    def _text(self, cumulative_N: np.ndarray, u: float) -> str:
        n = min(int(np.searchsorted(cumulative_N, u * cumulative_N[-1], side="right")), len(cumulative_N) - 1)
        return " ".join(self.vocabulary[token] for token in self.space.responses[n][:-1])

    def rankings(self, split: str) -> list[Ranking]:
        raise DataError(
            "the enumerable world has no rankings of its own: add a `comparisons` stage, which samples them from the policy"
            " and labels them with a reward such as `table`"
        )

    def pretraining(self, split: str) -> list[str]:
        """Prompt and demonstration in one text."""
        return [f"{d.prompt} {d.completion}".strip() for d in self.demonstrations(split)]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word, words separated by blanks."""
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(self.vocabulary)}))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)

    def _number(self, split: str) -> int:
        if split not in SPLITS:
            raise DataError(f"the enumerable world has no split {split!r}: use one of {', '.join(SPLITS)}")
        return SPLITS.index(split)


@hookimpl
def register_components(register):
    register(Enumerable)
