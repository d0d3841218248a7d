"""The laws of what a world is made of: data, models, templates; and of stages that are computed in it."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from rlhf_lab.contracts import Demonstration, Ranking
from rlhf_lab.errors import DataError
from rlhf_lab.testing import world
from rlhf_lab.testing.every_kind import each_parameter_counts
from rlhf_lab.testing.sentences import require, same, shown

PARTS = {"prompts": str, "demonstrations": Demonstration, "rankings": Ranking, "pretraining": str}
SPLITS = ("train", "validation")
PROMPTS = ("w0", "Continue: w5 w3 w1", "w2")


def parts(data: Any) -> dict[str, Any]:
    """All parts of both splits; where there is none, the name of the error."""
    found: dict[str, Any] = {}
    opened = data.open(world.context())
    for part in PARTS:
        for split in SPLITS:
            try:
                found[f"{part}.{split}"] = list(getattr(opened, part)(split))
            except DataError:
                found[f"{part}.{split}"] = "DataError"
    return found


def each_part_is_there_or_an_error(data: Any) -> None:
    """A part is a list of what its name says, not empty, or a DataError that says what to add."""
    for name, items in parts(data).items():
        if items != "DataError":
            of = PARTS[name.split(".")[0]]
            require(
                items and all(isinstance(item, of) for item in items),
                f"{name} holds {shown(items[:2])}, expected {of.__name__}s",
            )
    require(any(parts(data)[f"{part}.train"] != "DataError" for part in PARTS), "there is no part at all")


def the_same_every_time(data: Any) -> None:
    """Opened twice, whatever has drawn from global generators in between, the data are the same."""
    first = parts(data)
    torch.manual_seed(99)
    same(readable(parts(data)), readable(first), "the second opening")


def readable(found: dict[str, Any]) -> dict[str, Any]:
    return {name: [item if isinstance(item, str) else dict(vars(item)) for item in items] for name, items in found.items()}


def data_outcome(data: Any) -> Any:
    tokenizer = data.open(world.context()).tokenizer()
    return [readable(parts(data)), len(tokenizer) if tokenizer is not None else 0]


DATA_LAWS = (each_part_is_there_or_an_error, the_same_every_time, each_parameter_counts(data_outcome, tries=24))


# ---------------------------------------------------------------------------------------------------------------
# Models


def it_is_ready_to_be_read(model: Any) -> None:
    """`open` returns a causal language model in fp32 on the CPU, dropout off, and a tokenizer with an EOS that fits it."""
    opened, tokenizer = model.open(world.context())
    kinds = {(p.dtype, p.device.type) for p in opened.parameters()}
    require(kinds == {(torch.float32, "cpu")}, f"its weights are {shown(kinds)}")
    require(not opened.training, "it is in training mode, so dropout is on; return model.eval()")
    require(tokenizer.eos_token_id is not None, "its tokenizer has no EOS token")
    logits = model_logits(opened)
    require(logits.shape[-1] >= len(tokenizer), f"it has {logits.shape[-1]} logits for {len(tokenizer)} tokens")


def model_logits(opened: Any) -> torch.Tensor:
    ids = torch.tensor([[world.EOS, 1, 0]])
    with torch.no_grad():
        return opened(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def its_weights_are_determined(model: Any) -> None:
    """Opened twice with one seed, whatever has drawn from global generators in between, it is the same model."""
    first = model_logits(model.open(world.context())[0])
    torch.manual_seed(99)
    same(model_logits(model.open(world.context())[0]), first, "a logit of the second opening")


def model_outcome(model: Any) -> list[Any]:
    opened, _ = model.open(world.context())
    config = getattr(opened, "config", None)
    longest = getattr(config, "max_position_embeddings", None)
    return [model_logits(opened), [(name, tuple(p.shape)) for name, p in opened.named_parameters()], longest]


MODEL_LAWS = (it_is_ready_to_be_read, its_weights_are_determined, each_parameter_counts(model_outcome, tries=40))


# ---------------------------------------------------------------------------------------------------------------
# Templates


def chat_tokenizer() -> Any:
    tokenizer = world.tokenizer()
    tokenizer.chat_template = world.CHAT
    return tokenizer


def a_prompt_becomes_one_text(template: Any) -> None:
    """`format` gives a text with something in it, the same each time, and different texts for different prompts."""
    texts = [template.format(prompt, chat_tokenizer()) for prompt in PROMPTS]
    require(all(isinstance(text, str) and text for text in texts), f"the texts are {shown(texts)}")
    require(len(set(texts)) == len(texts), f"two prompts have one text: {shown(texts)}")
    same([template.format(prompt, chat_tokenizer()) for prompt in PROMPTS], texts, "the text of the second time")


def template_outcome(template: Any) -> list[str]:
    return [template.format(prompt, chat_tokenizer()) for prompt in PROMPTS]


TEMPLATE_LAWS = (a_prompt_becomes_one_text, each_parameter_counts(template_outcome, tries=100))


# ---------------------------------------------------------------------------------------------------------------
# Stages


def computed(stage: Any) -> dict[str, bytes]:
    """The files that a stage leaves, by name."""
    with tempfile.TemporaryDirectory() as folder:
        stage.run(world.context(Path(folder), stage=stage.name))
        files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def twice_the_same_bytes(stage: Any) -> None:
    """Computed twice, whatever has drawn from global generators in between, a stage leaves the same files; rows are numbers."""
    first = computed(stage)
    torch.manual_seed(99)
    second = computed(stage)
    require(first, "it leaves nothing in ctx.folder")
    require(set(first) == set(second), f"it leaves {shown(sorted(first))}, then {shown(sorted(second))}")
    other = [name for name in first if first[name] != second[name]]
    require(not other, f"{', '.join(other)} are other bytes the second time; draw from ctx.rng(name, …)")
    for line in first.get("steps.jsonl", b"").decode().splitlines():
        check_row(json.loads(line))


def check_row(row: dict[str, Any]) -> None:
    """A row has stage, step and split, and otherwise numbers (null where one does not apply)."""
    require({"stage", "step", "split"} <= set(row), f"a row has {shown(sorted(row))}")
    others = {key: value for key, value in row.items() if key not in ("stage", "split")}
    fine = all(value is None or (isinstance(value, int | float) and math.isfinite(value)) for value in others.values())
    require(fine, f"a row holds {shown(others)}")


STAGE_LAWS = (twice_the_same_bytes,)
