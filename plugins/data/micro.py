"""The embedded world: reviews from a small grammar, for experiments that need no network, no weights and no minutes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_lab.contracts import Component, Demonstration, Ranking, hookimpl, param
from rlhf_lab.errors import DataError
from rlhf_lab_plugins.data.micro_grammar import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, chain, openings, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from rlhf_lab.context import StageContext

SPLITS = ("train", "validation")


class Micro(Component):
    """Openings of restaurant and film reviews, and demonstrations that go on with them; comparisons are made, not given.

    320 prompts, 256 words, responses of at most 27 words and their EOS. The world is a demonstrator: its sizes
    were chosen so that reward over-optimisation shows within minutes on one core, and it is evidence for no law.
    """

    kind, name = "data", "micro"
    sentences: int = param(8000, "demonstrations in both splits together", ge=1, unit="reviews")
    pretraining_sentences: int = param(8000, "reviews in both splits of the pretraining text together", ge=1, unit="reviews")
    noise_words: float = param(
        0.01, "share of the demonstrations' words replaced by any word, so that the policy explores", ge=0, le=1
    )
    validation_prompts: int = param(64, "openings held out, with all that was written for them", ge=1, lt=320, unit="prompts")
    seed: int = param(0, "seed of the world: which reviews there are and which openings are held out", ge=0)

    def open(self, ctx: StageContext) -> MicroWorld:
        return build_world(self)


@dataclass(frozen=True)
class MicroWorld:
    """The texts of the world, by split."""

    prompts_by_split: dict[str, list[str]]
    demonstrations_by_split: dict[str, list[Demonstration]]
    pretraining_by_split: dict[str, list[str]]

    def prompts(self, split: str) -> list[str]:
        return list(of_split(self.prompts_by_split, split))

    def demonstrations(self, split: str) -> list[Demonstration]:
        return list(of_split(self.demonstrations_by_split, split))

    def rankings(self, split: str) -> list[Ranking]:
        raise DataError(
            "the micro world has no rankings of its own: add a `comparisons` stage, which samples them from the policy and"
            " labels them with the gold reward"
        )

    def pretraining(self, split: str) -> list[str]:
        """Clean reviews, opening and response in one text."""
        return list(of_split(self.pretraining_by_split, split))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return build_tokenizer()


def of_split(parts: dict[str, Any], split: str) -> Any:
    if split not in parts:
        raise DataError(f"the micro world has no split {split!r}: use one of {', '.join(SPLITS)}")
    return parts[split]


@lru_cache(maxsize=4)  # a second's work, which each stage of each run would do again
def build_world(params: Micro) -> MicroWorld:
    """The world of these parameters; the same on every machine, whatever the seed of the run."""
    splitting, writing, noising, reading = np.random.default_rng(params.seed).spawn(4)
    held_out = set(splitting.permutation(len(openings()))[: params.validation_prompts].tolist())
    prompts = {split: [] for split in SPLITS}
    for i, (_, prompt) in enumerate(openings()):
        prompts[split_of(i, held_out)].append(prompt)
    demonstrations, pretraining = {split: [] for split in SPLITS}, {split: [] for split in SPLITS}
    for i, prompt, words in write_reviews(params.sentences, writing):
        completion = " ".join(with_noise(words, params.noise_words, noising))
        demonstrations[split_of(i, held_out)].append(Demonstration(prompt, completion))
    for i, prompt, words in write_reviews(params.pretraining_sentences, reading):
        pretraining[split_of(i, held_out)].append(" ".join([prompt, *words]))
    return MicroWorld(prompts, demonstrations, pretraining)


def split_of(prompt: int, held_out: set[int]) -> str:
    return "validation" if prompt in held_out else "train"


def write_reviews(n: int, rng: np.random.Generator) -> list[tuple[int, str, list[str]]]:
    """n reviews: number of the opening, the opening, and the words that follow; openings are drawn uniformly."""
    numbers = rng.integers(len(openings()), size=n).tolist()
    domains, prompts = zip(*(openings()[i] for i in numbers), strict=True)
    return list(zip(numbers, prompts, chain().sample(rng, domains), strict=True))


def with_noise(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """Each word, with probability `share`, replaced by a word drawn uniformly from the vocabulary."""
    pool = vocabulary()[len(SPECIAL_TOKENS) :]
    replaced, replacements = rng.random(len(words)) < share, rng.integers(len(pool), size=len(words))
    return [pool[j] if r else word for word, r, j in zip(words, replaced, replacements, strict=True)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, words separated by blanks; decoding gives the words joined by blanks."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary())}
    model = Tokenizer(WordLevel(ids, unk_token=UNK))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK,
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


@hookimpl
def register_components(register):
    register(Micro)
