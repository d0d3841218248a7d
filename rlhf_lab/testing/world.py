"""The world in which laws are tried: sixteen words, models of two layers, stages on disk. Milliseconds, no network.

Its components are registered like anybody's plugin; nothing in it is a mock. The models are untrained but initialised widely,
so that their laws are far from uniform and every seam shows. GPT-2 stands beside Llama because rotary positions forgive a
shift of all positions and learned ones do not.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from rlhf_lab.context import StageContext
from rlhf_lab.contracts import Component, Demonstration, Ranking, Rollout, Scores, hookimpl, param
from rlhf_lab.lm.tokens import Encoder

WORDS = [f"w{i}" for i in range(12)]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
VOCABULARY = SPECIAL + WORDS
PAD, BOS, EOS, UNK = range(4)
CONTEXT = 32
CHAT = (
    "{% if messages[0]['role'] != 'system' %}system be kind\n{% endif %}"
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


# ---------------------------------------------------------------------------------------------------------------
# Words and models


def tokenizer(pad: str | None = "<pad>") -> Any:
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


def causal_lm(architecture: str = "llama", *, seed: int = 0, spread: float = 0.4, width: int = 16) -> Any:
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


class Plain:
    """The prompt as it is."""

    def format(self, prompt: str, tokenizer: Any) -> str:
        return prompt


def encoder(pad: str | None = "<pad>") -> Encoder:
    return Encoder(tokenizer(pad), Plain(), CONTEXT)


@cache
def cached_encoder() -> Encoder:
    return encoder()


def encoded(prompts: Sequence[str], responses: Sequence[str], ended: Sequence[bool] | None = None) -> Rollout:
    return cached_encoder().encode(prompts, responses, ended)


def padded(rollout: Rollout, left: int, right: int, filler: int) -> Rollout:
    """The same sequences with more padding on both sides, and `filler` in all of it."""
    pad = torch.nn.functional.pad
    prompt_mask_BP, mask_BT = pad(rollout.prompt_mask_BP, (left, 0)), pad(rollout.mask_BT, (0, right))
    return dataclasses.replace(
        rollout,
        prompt_ids_BP=pad(rollout.prompt_ids_BP, (left, 0)).masked_fill(~prompt_mask_BP, filler),
        prompt_mask_BP=prompt_mask_BP,
        response_ids_BT=pad(rollout.response_ids_BT, (0, right)).masked_fill(~mask_BT, filler),
        mask_BT=mask_BT,
        logprobs_BT=None if rollout.logprobs_BT is None else pad(rollout.logprobs_BT, (0, right)),
    )


# ---------------------------------------------------------------------------------------------------------------
# Stages on disk


def save_policy(folder: Path, **keywords: Any) -> None:
    causal_lm(**keywords).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_reward_model(folder: Path, seed: int = 7, **keywords: Any) -> None:
    from rlhf_lab.lm.scalar import ScalarModel

    model = ScalarModel(causal_lm(seed=seed, **keywords).model, "last", torch.Generator().manual_seed(seed))
    model.save(folder, tokenizer())


def save_rankings(folder: Path) -> None:
    """What a stage that compares responses leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        lines = [json.dumps({**vars(r), "ended": [True] * len(r.completions)}) for r in TinyWorld(TinyData()).rankings(split)]
        (folder / f"rankings.{split}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


class Stages:
    """Folders of finished stages by name: `reward_model` and `comparisons` hold what their names say, the others a policy.

    A copy of a stage, such as `reward_model@1`, is that stage.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        save_policy(root / "sft")
        save_policy(root / "another", seed=5)
        save_reward_model(root / "reward_model")
        save_rankings(root / "comparisons")

    def __getitem__(self, name: str) -> Path:
        folder = self.root / name.split("@")[0]
        return folder if folder.is_dir() else self.root / "sft"


@cache
def stages() -> Stages:
    """The stages, in a temporary folder that goes with the process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    root = Path(tempfile.mkdtemp(prefix="rlhf-lab-laws-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Stages(root)


def context(folder: Path | None = None, *, seed: int = 0, stage: str = "law") -> StageContext:
    """What a component is given when a run opens it."""
    config: Any = SimpleNamespace(data=TinyData(), model=TinyModel(), template=Plain(), precision="fp32", stages={})
    inputs: Any = stages()
    return StageContext(config, stage, seed, folder or inputs["sft"], inputs, folder or inputs["sft"])


# ---------------------------------------------------------------------------------------------------------------
# Components


class TinyData(Component):
    """Prompts of one to four words; demonstrations that walk on from the last word; rankings by the number of `w1`."""

    kind, name = "data", "tiny"
    prompts_per_split: int = param(12, "prompts in each split", ge=1)
    demonstrations: int = param(24, "demonstrations in each split", ge=1)
    completions: int = param(3, "completions that are ranked", ge=2)

    def open(self, ctx: Any) -> TinyWorld:
        return TinyWorld(self)


class TinyWorld:
    """The data that `TinyData` opens."""

    def __init__(self, cfg: TinyData) -> None:
        self.cfg = cfg

    def prompts(self, split: str) -> list[str]:
        rng = np.random.default_rng(["train", "validation"].index(split))
        return [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(self.cfg.prompts_per_split)]

    def demonstrations(self, split: str) -> list[Demonstration]:
        prompts = self.prompts(split)
        return [walk(prompts[i % len(prompts)], 1 + i % 4) for i in range(self.cfg.demonstrations)]

    def rankings(self, split: str) -> list[Ranking]:
        rng = np.random.default_rng([2, ["train", "validation"].index(split)])
        return [self._ranking(prompt, rng) for prompt in self.prompts(split)]

    def _ranking(self, prompt: str, rng: np.random.Generator) -> Ranking:
        completions = tuple(" ".join(rng.choice(WORDS[:4], rng.integers(1, 6))) for _ in range(self.cfg.completions))
        return Ranking(prompt, completions, tuple(float(text.split().count("w1")) for text in completions))

    def pretraining(self, split: str) -> list[str]:
        return [f"{d.prompt} {d.completion}" for d in self.demonstrations(split)]

    def tokenizer(self) -> Any:
        return tokenizer()


def walk(prompt: str, n: int) -> Demonstration:
    """The n words after the prompt's last one, in the order of the vocabulary."""
    last = WORDS.index(prompt.split()[-1])
    return Demonstration(prompt, " ".join(WORDS[(last + 1 + k) % len(WORDS)] for k in range(n)))


class TinyModel(Component):
    """The base model of the tiny world."""

    kind, name = "model", "tiny"
    spread: float = param(0.4, "standard deviation of the initial weights", ge=0)

    def open(self, ctx: Any) -> tuple[Any, Any]:
        return causal_lm(spread=self.spread), tokenizer()


class WordScore(Component):
    """value · (number of `w1`) − (number of `w2`): known by counting."""

    kind, name = "reward", "words"
    value: float = param(1.0, "score of each w1")

    def open(self, ctx: Any) -> Any:
        def score(rollout: Rollout) -> Scores:
            counts = [(text.split().count("w1"), text.split().count("w2")) for text in rollout.responses]
            good, bad = torch.tensor(counts, dtype=torch.float32).unbind(1)
            return Scores(self.value * good - bad, {"good": good})

        return score


class ResponseTokens(Component):
    """The number of response tokens, EOS included."""

    kind, name = "reward", "response_tokens"

    def open(self, ctx: Any) -> Any:
        return lambda rollout: Scores(rollout.mask_BT.sum(1).float())


@hookimpl
def register_components(register: Any) -> None:
    for component in (TinyData, TinyModel, WordScore, ResponseTokens):
        register(component)
