"""The instruction format of Stanford Alpaca."""

from __future__ import annotations

from typing import Any

from rlhf_lab.contracts import Component, hookimpl

FORMAT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)


class Alpaca(Component):
    """The prompt is the instruction; the text ends after "### Response:", without a line break, as in the original.

    Source: Taori et al. 2023; tatsu-lab/stanford_alpaca `train.py`, PROMPT_DICT["prompt_no_input"], the exact text that
    Alpaca models were trained on.
    """

    kind, name = "template", "alpaca"

    def format(self, prompt: str, tokenizer: Any) -> str:
        return FORMAT.replace("{}", prompt)


@hookimpl
def register_components(register):
    register(Alpaca)
