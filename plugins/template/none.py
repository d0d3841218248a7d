"""The prompt as it is."""

from rlhf_lab.contracts import Component, hookimpl


class NoTemplate(Component):
    """The model continues the prompt itself."""

    kind, name = "template", "none"

    def format(self, prompt, tokenizer):
        return prompt


@hookimpl
def register_components(register):
    register(NoTemplate)
