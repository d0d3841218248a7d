"""Anybody's Python function as a reward: the smallest plugin there is.

    # kind_words.py
    from rlhf_lab import hookimpl, reward_function

    def kind_words(prompts, responses, *, weight: float = 1.0):
        "How often a response says please."
        return [weight * response.count("please") for response in responses]

    @hookimpl
    def register_components(register):
        register(reward_function(kind_words))

`rlhf-lab run SPEC --plugin kind_words.py rl.reward='{name: kind_words, weight: 2}'`
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from pydantic import create_model

from rlhf_lab.contracts import Component, Rollout, Scores
from rlhf_lab.errors import PluginError


def reward_function(score: Callable[..., Any], *, version: int = 1) -> type[Component]:
    """A reward component that is named after `score(prompts, responses) -> scores`, one number per response.

    Its docstring says what it is in `plugins list`; keyword-only arguments are parameters, checked against their
    annotations. Raise `version` when the numbers change (a plugin file is told apart by its content anyway).
    """
    first, *more = inspect.signature(score).parameters.values()
    options = [p for p in more if p.kind is p.KEYWORD_ONLY]
    if first.kind is first.KEYWORD_ONLY or len(more) - len(options) != 1:
        raise PluginError(f"reward function {score.__name__} must take (prompts, responses), and options only after a `*`")
    if not (score.__doc__ or "").strip():
        raise PluginError(f"reward function {score.__name__} needs a docstring that says what it measures")

    def open(self: Any, ctx: Any) -> Callable[[Rollout], Scores]:
        parameters = {option.name: getattr(self, option.name) for option in options}

        def scorer(rollout: Rollout) -> Scores:
            scores = score(list(rollout.prompts), list(rollout.responses), **parameters)
            return Scores(torch.as_tensor(scores, dtype=torch.float32).to(rollout.mask_BT.device))

        return scorer

    hints = get_type_hints(score)
    fields = {p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in options}
    made = create_model(score.__name__, __base__=Component, __module__=score.__module__, __doc__=score.__doc__, **fields)
    made.kind, made.name, made.version, made.open = "reward", score.__name__, version, open
    return made
