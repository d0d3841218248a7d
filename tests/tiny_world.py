"""The tests' part of the kit's small world (`rlhf_lab.testing.world`): witnesses, a registry, and stages that run in it.

Its components are registered like anybody's plugin; nothing in it is a mock.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from rlhf_lab.context import StageContext
from rlhf_lab.contracts import Component, Scores, StageRef, hookimpl, param
from rlhf_lab.declaration.sweep import validate_run
from rlhf_lab.registry import discover
from rlhf_lab.testing.world import (
    BOS,
    CONTEXT,
    EOS,
    PAD,
    SPECIAL,
    UNK,
    VOCABULARY,
    WORDS,
    Plain,
    TinyData,
    TinyModel,
    TinyWorld,
    WordScore,
    causal_lm,
    encoder,
    save_policy,
    save_reward_model,
    tokenizer,
    walk,
)
from rlhf_lab_plugins.policy.causal_lm import CausalLM

__all__ = [
    "BOS", "CONTEXT", "EOS", "PAD", "SPECIAL", "UNK", "VOCABULARY", "WORDS", "Plain", "TinyData", "TinyModel", "TinyWorld",
    "WordScore", "causal_lm", "encoder", "save_policy", "save_reward_model", "tokenizer", "walk",
]  # fmt: skip

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


class TwoPrompts(Component):
    """Two prompts, the same ones in both splits: a bandit with two states."""

    kind, name = "data", "two_prompts"

    def open(self, ctx):
        return self

    def prompts(self, split):
        return ["w0", "w5 w3"]


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
    raw |= {name: {"name": "sft"} for name in inputs or {} if name not in raw}
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
