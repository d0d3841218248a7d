"""The prompt as it is."""

from __future__ import annotations

from typing import Any

from rlhf_lab.contracts import Component, hookimpl


class NoTemplate(Component):
    """The model continues the prompt itself."""

    kind, name = "template", "none"

    def format(self, prompt: str, tokenizer: Any) -> str:
        return prompt


@hookimpl
def register_components(register):
    register(NoTemplate)
