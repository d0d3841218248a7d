"""Anybody's function as a reward."""

import json
from types import SimpleNamespace

import pytest
import torch
from micro_spec import lab, refused, write_spec

from rlhf_lab import reward_function
from rlhf_lab.errors import PluginError
from rlhf_lab.registry import discover

SOURCE = '''
from rlhf_lab import hookimpl, reward_function

def kind_words(prompts, responses, *, word: str = "the", weight: float = 1.0):
    """How often a response says the word."""
    return [weight * response.split().count(word) for response in responses]

@hookimpl
def register_components(register):
    register(reward_function(kind_words))
'''


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "kind_words.py"
    path.write_text(SOURCE)
    return path


def test_it_is_a_component_like_any_other(plugin):
    shown = json.loads(lab("plugins", "show", "reward", "kind_words", "--plugin", plugin, "--json").stdout)
    assert shown["doc"] == "How often a response says the word."
    assert [(p["parameter"], p["type"], p["default"]) for p in shown["parameters"]] == [
        ("word", "str", "'the'"), ("weight", "float", "1.0")
    ]  # fmt: skip


def test_its_parameters_are_checked_with_their_place(plugin, tmp_path):
    path = write_spec(tmp_path)
    path.write_text(path.read_text().replace("reward: length", "reward: {name: kind_words, wieght: 1}"))
    assert "unknown key 'wieght' in rl.reward (did you mean 'weight'?)" in refused(path, "--plugin", plugin)


def test_responses_are_scored_by_it(plugin):
    rollout = SimpleNamespace(prompts=("a", "b"), responses=("the the cat", "no"), mask_BT=torch.ones(2, 3))
    component = discover([plugin]).choose("reward", {"name": "kind_words", "weight": 2})
    scores = component.open(None)(rollout)
    assert scores.scores_B.tolist() == [4.0, 0.0] and scores.scores_B.dtype == torch.float32


def no_docstring(prompts, responses):
    return []


def one_argument(texts):
    """One."""


def too_many(prompts, responses, weight):
    """Three."""


def options_only(*, prompts, responses):
    """By name."""


@pytest.mark.parametrize("function", [no_docstring, one_argument, too_many, options_only])
def test_what_is_no_reward_function_is_refused(function):
    with pytest.raises(PluginError, match=function.__name__):
        reward_function(function)
