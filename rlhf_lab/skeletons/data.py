"""TODO: one line on what these data are."""

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import Demonstration, Ranking
from rlhf_lab.errors import DataError

PROMPTS = {"train": ["w1", "w2 w3"], "validation": ["w4"]}  # TODO: yours, or read from a file in open()


class Skeleton(Component):
    """Prompts with answers that repeat them, and rankings by length. TODO: what is in it, its size, its source and licence.

    Splits are `train` and `validation`. A part that the data does not have raises DataError, saying what to add. Files are
    given relative to the spec, whose folder is `ctx.spec_folder`.
    """

    kind, name = "data", "skeleton"
    repeat: int = param(1, "TODO: what this parameter does", ge=1)

    def open(self, ctx):
        return Dataset(self)


class Dataset:
    """The opened data."""

    def __init__(self, cfg):
        self.cfg = cfg

    def prompts(self, split):
        return PROMPTS[split] * self.cfg.repeat

    def demonstrations(self, split):
        return [Demonstration(prompt, prompt) for prompt in self.prompts(split)]

    def rankings(self, split):
        return [Ranking(prompt, (prompt, f"{prompt} {prompt}"), (0.0, 1.0)) for prompt in self.prompts(split)]

    def pretraining(self, split):
        raise DataError("data skeleton has no pretraining text; add a method that returns some, or drop the term that needs it")

    def tokenizer(self):
        return None  # or a tokenizer of transformers, for a model from scratch


@hookimpl
def register_components(register):
    register(Skeleton)
