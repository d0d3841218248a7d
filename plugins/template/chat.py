"""The chat template that a tokenizer brings along."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from rlhf_lab.contracts import Component, hookimpl, param
from rlhf_lab.errors import ModelError


class Chat(Component):
    """The prompt is the user's turn, and the text ends where the assistant's turn begins.

    Special tokens come exactly once: a chat template writes them itself, so its text is to be tokenised with
    `add_special_tokens=False`, and a BOS is put in front only where the text does not begin with one.

    A prompt that begins with `prefill_after` asks to go on with a text: what follows those words becomes the opening
    of the assistant's turn, and the user's message is `instruction`, or else the prompt itself.
    """

    kind, name = "template", "chat"
    system: str | None = param(
        None, "the system message; an empty text is an empty message, and none is no message", examples=["You are brief."]
    )
    template_system: bool = param(False, "without `system`: keep the message that some templates put there by themselves")
    prefill_after: str | None = param(
        None, "words of a prompt after which comes the opening of the response", min_length=1, examples=["Continue: "]
    )
    instruction: str | None = param(
        None, "the user's message for prompts that begin with `prefill_after`", examples=["Go on with this text."]
    )

    @model_validator(mode="after")
    def _instruction_has_its_case(self) -> Chat:
        if self.instruction is not None and self.prefill_after is None:
            raise ValueError("`instruction` goes with `prefill_after`")
        if self.system is not None and self.template_system:
            raise ValueError("`template_system` goes without `system`")
        return self

    def format(self, prompt: str, tokenizer: Any) -> str:
        if getattr(tokenizer, "chat_template", None) is None:
            raise ModelError("the tokenizer has no chat template; use the template `none` or `alpaca`, or a chat model")
        message, opening = self._message_and_opening(prompt)
        return self._conversation(message, tokenizer) + opening

    def _message_and_opening(self, prompt: str) -> tuple[str, str]:
        if self.prefill_after is None or not prompt.startswith(self.prefill_after):
            return prompt, ""
        return (prompt if self.instruction is None else self.instruction), prompt.removeprefix(self.prefill_after)

    def _conversation(self, message: str, tokenizer: Any) -> str:
        if self.system is not None:
            return rendered(tokenizer, turn("system", self.system), turn("user", message))
        text = rendered(tokenizer, turn("user", message))
        return text if self.template_system else without_default_system(text, message, tokenizer)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def rendered(tokenizer: Any, *turns: dict[str, str], reply: bool = True) -> str:
    from jinja2.exceptions import TemplateError

    try:
        return tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=reply)
    except TemplateError as error:
        roles = " and ".join(t["role"] for t in turns)
        raise ModelError(f"the tokenizer's chat template refuses a {roles} message: {error}") from None


def without_default_system(text: str, message: str, tokenizer: Any) -> str:
    """`text` without the system turn that the template wrote although none was given.

    What the template writes after a system turn of ours is the conversation without any: whatever else stands
    before it in `text` is the default, but for a BOS. A template that has no separate system turn writes none.
    """
    ours = turn("system", "-")
    try:
        system, whole = rendered(tokenizer, ours, reply=False), rendered(tokenizer, ours, turn("user", message))
    except ModelError:
        return text
    rest = whole.removeprefix(system)
    if not system or rest == whole or not text.endswith(rest):
        return text
    bos = tokenizer.bos_token or ""
    return rest if rest.startswith(bos) or not text.startswith(bos) else bos + rest


@hookimpl
def register_components(register):
    register(Chat)
