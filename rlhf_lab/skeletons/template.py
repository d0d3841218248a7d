"""TODO: one line on how this template writes a prompt."""

from rlhf_lab import Component, hookimpl, param


class Skeleton(Component):
    """before + prompt + after. TODO: the exact text that the model was trained on, and where it comes from.

    What is returned is tokenised without special tokens but for a BOS, if the tokenizer has one and the text lacks it.
    """

    kind, name = "template", "skeleton"
    before: str = param("", "TODO: what this parameter does", examples=["Question: "])
    after: str = param("", "TODO: what this parameter does", examples=[" Answer:"])

    def format(self, prompt, tokenizer):
        return self.before + prompt + self.after


@hookimpl
def register_components(register):
    register(Skeleton)
