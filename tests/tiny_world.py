"""A world of sixteen words with models of two layers: everything that the laboratory does, in milliseconds.

Its components are registered like anybody's plugin; nothing in it is a mock. The models are untrained but initialised
widely, so that their laws are far from uniform and every seam shows. GPT-2 stands beside Llama because rotary positions
forgive a shift of all positions and learned ones do not.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from rlhf_lab.context import StageContext
from rlhf_lab.contracts import Component, Demonstration, Ranking, Scores, StageRef, hookimpl, param
from rlhf_lab.lm.tokens import Encoder
from rlhf_lab.registry import discover
from rlhf_lab.spec import validate_run
from rlhf_lab_plugins.policy.causal_lm import CausalLM

WORDS = [f"w{i}" for i in range(12)]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
VOCABULARY = SPECIAL + WORDS
PAD, BOS, EOS, UNK = range(4)
CONTEXT = 32


def tokenizer(pad: str | None = "<pad>"):
    """One token per word; `pad` may be the EOS, or None."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    padding = {} if pad is None else {"pad_token": pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        **padding,
    )


def causal_lm(architecture: str = "llama", *, seed: int = 0, spread: float = 0.4, width: int = 16):
    """A model whose weights are N(0, spread²): its laws have about half a nat less than a uniform one; with 0 it is uniform."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    shared = {
        "vocab_size": len(VOCABULARY),
        "initializer_range": spread,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
    }
    if architecture == "llama":
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            **shared,
        )
    else:
        config = GPT2Config(
            n_embd=width, n_layer=2, n_head=2, n_positions=CONTEXT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shared
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    if spread == 0:
        model.get_output_embeddings().weight.data.zero_()
    return model


def encoder(pad: str | None = "<pad>") -> Encoder:
    return Encoder(tokenizer(pad), Plain(), CONTEXT)


class Plain:
    """The prompt as it is."""

    def format(self, prompt, tokenizer):
        return prompt


def save_policy(folder: Path, **keywords) -> None:
    causal_lm(**keywords).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_reward_model(folder: Path, seed: int = 7) -> None:
    from rlhf_lab.lm.scalar import ScalarModel

    model = ScalarModel(causal_lm(seed=seed).model, "last", torch.Generator().manual_seed(seed))
    model.save(folder, tokenizer())


# What follows is read by the tests as witness: plain forwards of single, unpadded sequences.


def next_laws(model, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """log softmax(z / τ) after each prefix of `ids`, shape (len(ids), V), in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return (logits.double() / temperature).log_softmax(-1)


def plain_logprobs(model, prompt_ids: list[int], response_ids: list[int], temperature: float = 1.0) -> list[float]:
    """log π(y_t | x, y_<t) of one unpadded sequence, the first response token included."""
    laws = next_laws(model, prompt_ids + response_ids, temperature)
    return [laws[len(prompt_ids) - 1 + t, token].item() for t, token in enumerate(response_ids)]


def plain_scalars(model, ids: list[int]) -> list[float]:
    """w·h + b at each position of one unpadded sequence."""
    with torch.no_grad():
        hidden = model.backbone(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
        return (hidden @ model.head.weight.double().T + model.head.bias.double()).squeeze(1).tolist()


def tokens_of(rollout) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, response ids) of each sequence, without padding."""
    return [
        (prompt[there].tolist(), response[mask].tolist())
        for prompt, there, response, mask in zip(
            rollout.prompt_ids_BP, rollout.prompt_mask_BP, rollout.response_ids_BT, rollout.mask_BT, strict=True
        )
    ]


def ids_of(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


# Components


class TinyData(Component):
    """Prompts of one to four words; demonstrations that walk on from the last word; rankings by the number of `w1`."""

    kind, name = "data", "tiny"
    prompts_per_split: int = param(12, "prompts in each split", ge=1)
    demonstrations: int = param(24, "demonstrations in each split", ge=1)
    completions: int = param(3, "completions that are ranked", ge=2)

    def open(self, ctx):
        return TinyWorld(self)


class TinyWorld:
    def __init__(self, cfg: TinyData) -> None:
        self.cfg = cfg

    def prompts(self, split):
        rng = np.random.default_rng(["train", "validation"].index(split))
        return [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(self.cfg.prompts_per_split)]

    def demonstrations(self, split):
        prompts = self.prompts(split)
        return [walk(prompts[i % len(prompts)], 1 + i % 4) for i in range(self.cfg.demonstrations)]

    def rankings(self, split):
        rng = np.random.default_rng([2, ["train", "validation"].index(split)])
        return [self._ranking(prompt, rng) for prompt in self.prompts(split)]

    def _ranking(self, prompt, rng):
        completions = tuple(" ".join(rng.choice(WORDS[:4], rng.integers(1, 6))) for _ in range(self.cfg.completions))
        return Ranking(prompt, completions, tuple(float(text.split().count("w1")) for text in completions))

    def pretraining(self, split):
        return [f"{d.prompt} {d.completion}" for d in self.demonstrations(split)]

    def tokenizer(self):
        return tokenizer()


def walk(prompt: str, n: int) -> Demonstration:
    """The n words after the prompt's last one, in the order of the vocabulary."""
    last = WORDS.index(prompt.split()[-1])
    return Demonstration(prompt, " ".join(WORDS[(last + 1 + k) % len(WORDS)] for k in range(n)))


class TwoPrompts(Component):
    """Two prompts, the same ones in both splits: a bandit with two states."""

    kind, name = "data", "two_prompts"

    def open(self, ctx):
        return self

    def prompts(self, split):
        return ["w0", "w5 w3"]


class TinyModel(Component):
    """The base model of the tiny world."""

    kind, name = "model", "tiny"
    spread: float = param(0.4, "standard deviation of the initial weights", ge=0)

    def open(self, ctx):
        return causal_lm(spread=self.spread), tokenizer()


class WordScore(Component):
    """value · (number of `w1`) − (number of `w2`): known by counting."""

    kind, name = "reward", "words"
    value: float = param(1.0, "score of each w1")

    def open(self, ctx):
        def score(rollout):
            counts = [(text.split().count("w1"), text.split().count("w2")) for text in rollout.responses]
            good, bad = torch.tensor(counts, dtype=torch.float32).unbind(1)
            return Scores(self.value * good - bad, {"good": good})

        return score


class FirstToken(Component):
    """A score for the first token of a response: the arms of a bandit."""

    kind, name = "reward", "first_token"
    scores: list[float] = param([0.0] * len(VOCABULARY), "score of each token", min_length=len(VOCABULARY))

    def open(self, ctx):
        table = torch.tensor(self.scores)
        return lambda rollout: Scores(table[rollout.response_ids_BT[:, 0]])


class Root(Component):
    """√(number of `w1` − number of `w2`): NaN where there are more of the latter."""

    kind, name = "reward", "root"

    def open(self, ctx):
        plain = WordScore().open(ctx)
        return lambda rollout: plain(rollout).scores_B.sqrt()


class OffReference(Component):
    """A policy whose reference is another model than the one it starts from: the seam that step 0 must catch."""

    kind, name = "policy", "off_reference"
    init: StageRef = param("sft", "the stage that the policy starts from")
    shift: float = param(0.05, "standard deviation of what is added to the reference's weights", ge=0)

    def build(self, ctx):
        policy = CausalLM(init=self.init).build(ctx)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in policy.frozen.parameters():
                weight += self.shift * torch.randn(weight.shape, generator=generator)
        return policy


@hookimpl
def register_components(register):
    for component in (TinyData, TwoPrompts, TinyModel, WordScore, FirstToken, Root, OffReference):
        register(component)


@cache
def registry():
    import tiny_world

    found = discover([], {"RLHF_LAB_LOAD_PLUGINS": ""})
    found.add_module(tiny_world, "tiny-world", "0")
    assert not found.broken, found.broken
    return found


def component(kind: str, value):
    """A component by name and parameters, as a spec would ask for it."""
    return registry().choose(
        kind, copy.deepcopy(value), {"registry": registry(), "stages": ["sft", "reward_model", "comparisons", "rl"]}
    )


def context(
    stage: str, parameters: dict, folder: Path, world: Path, *, seed: int = 0, inputs=None, data="tiny", model="tiny"
) -> StageContext:
    """The context of one stage, whose inputs are the folders of `world` unless `inputs` names others."""
    raw = {"data": data, "model": model, "sft": {}, "reward_model": {}, "comparisons": {"labeler": "words"}, "rl": {}}
    config = validate_run({**copy.deepcopy(raw), stage: {"name": stage, **copy.deepcopy(parameters)}}, registry())
    found = {name: world / name for name in raw} | (inputs or {})
    return StageContext(config, stage, seed, folder, found, folder)


@dataclass(frozen=True)
class Finished:
    """What a stage wrote."""

    folder: Path

    def rows(self, split: str | None = None) -> list[dict]:
        rows = [json.loads(line) for line in (self.folder / "steps.jsonl").read_text().splitlines()]
        return [row for row in rows if split in (None, row["split"])]

    def samples(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "samples.jsonl").read_text().splitlines()]

    def weights(self, part: str = "policy") -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.folder / part / "model.safetensors")
