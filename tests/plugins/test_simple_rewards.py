"""Rewards that are rules: each expected score is worked out by hand from the lexicon's published numbers."""

import math
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab_plugins.reward.grammar_gold import GrammarGold
from rlhf_lab_plugins.reward.length import Length
from rlhf_lab_plugins.reward.vader import Vader

PROMPT = "today we visited the cafe with family :"
# Mean ratings in the VADER lexicon: great 3.1, horrible -2.5, good 1.9, joy 2.8.


def rollout(*responses, ended=True, prompt=PROMPT):
    """What these rewards read of a rollout of word-level tokens."""
    lengths = [len(text.split()) + ended for text in responses]
    mask_BT = torch.tensor([[float(t < n) for t in range(40)] for n in lengths])
    return SimpleNamespace(
        prompts=(prompt,) * len(responses), responses=responses, mask_BT=mask_BT, ended_B=torch.tensor([ended] * len(responses))
    )  # fmt: skip


def score(component, *responses, **keywords):
    return component.open(None)(rollout(*responses, **keywords))


def sentiment(s):
    return 4 * s / math.sqrt(s * s + 64)


@pytest.mark.parametrize(
    "text, valence, bad, dup",
    [
        ("the soup was great .", 3.1, 0, 0),
        ("the soup was horrible .", -2.5, 0, 0),
        ("the soup was round .", 0.0, 0, 0),
        ("that was one great joy !", 5.9, 0, 0),
        ("great great great great great", 15.5, 6, 2),  # the seam, four pairs and the missing stop
        ("the soup was good ! ! ! ! ! !", 1.9, 0, 3),
        ("the soup great .", 3.1, 1, 0),
        ("", 0.0, 1, 0),  # ": <eos>"
    ],
)
def test_gold_is_sentiment_less_convex_penalties(text, valence, bad, dup):
    scores_B, columns = score(GrammarGold(), text)
    assert {name: column.item() for name, column in columns.items()} == pytest.approx(
        {"valence": valence, "bad": bad, "dup": dup}, abs=1e-6
    )  # fmt: skip
    assert scores_B.item() == pytest.approx(sentiment(valence) - 0.25 * bad**2 - 0.08 * dup**2, abs=1e-5)


def test_a_response_without_eos_loses_the_penalty_and_the_pair_that_the_eos_would_make():
    finished = score(GrammarGold(), "the soup was great .", ended=False)
    assert finished.scores_B.item() == pytest.approx(sentiment(3.1) - 1, abs=1e-5)
    cut = score(GrammarGold(), "the soup was great", ended=False)
    assert cut.columns["bad"].item() == 0
    assert score(GrammarGold(), "the soup was great").columns["bad"].item() == 1


def test_the_penalties_are_capped_together():
    worst = score(GrammarGold(), " ".join(["soup"] * 27))
    assert worst.columns["bad"].item() == 28
    assert worst.columns["dup"].item() == 24
    assert worst.scores_B.item() == pytest.approx(-10)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"scale": 8.0}, 8 * 1.9 / math.sqrt(1.9**2 + 64) - 0.25 - 0.08 * 9),
        ({"softness": 1.0}, 4 * 1.9 / math.sqrt(1.9**2 + 1) - 0.25 - 0.08 * 9),
        ({"bad_weight": 1.0}, sentiment(1.9) - 1 - 0.08 * 9),
        ({"dup_weight": 1.0}, sentiment(1.9) - 0.25 - 9),
        ({"allowance": 5}, sentiment(1.9) - 0.25 - 0.08 * 1),
        ({"cap": 0.5}, sentiment(1.9) - 0.5),
    ],
)
def test_each_parameter_does_what_it_says(change, expected):
    text = "soup was good ! ! ! ! ! !"
    assert score(GrammarGold(**change), text).scores_B.item() == pytest.approx(expected, abs=1e-5)


def test_the_penalty_for_no_eos_is_a_parameter():
    low, high = (score(GrammarGold(no_eos_penalty=p), "the soup was great", ended=False).scores_B.item() for p in (0.0, 2.5))
    assert low - high == pytest.approx(2.5)


def test_scores_do_not_depend_on_the_rest_of_the_batch():
    texts = ["the soup was great .", "great great", "we hated the soup !"]
    alone = [score(GrammarGold(), text).scores_B.item() for text in texts]
    assert score(GrammarGold(), *texts).scores_B.tolist() == alone


def test_vader_is_the_compound_score_with_its_published_normalisation():
    """Hutto & Gilbert 2014: the sum of valences x, squashed by x/√(x² + 15), rounded to four places."""
    scores_B = score(Vader(), "the soup was great .", "the soup was horrible .", "the soup was round .").scores_B
    assert scores_B.tolist() == pytest.approx([3.1 / math.sqrt(3.1**2 + 15), -2.5 / math.sqrt(2.5**2 + 15), 0.0], abs=1e-4)


def test_vader_may_read_the_prompt_too():
    prompt = "what a great cafe :"
    assert score(Vader(), "the soup was round .", prompt=prompt).scores_B.item() == 0
    both = score(Vader(include_prompt=True), "the soup was round .", prompt=prompt).scores_B.item()
    assert both == pytest.approx(3.1 / math.sqrt(3.1**2 + 15), abs=1e-4)


def test_length_counts_the_tokens_of_the_mask():
    texts = ("the soup was great .", "the soup .")
    assert score(Length(), *texts).scores_B.tolist() == [6, 4]
    assert score(Length(), *texts, ended=False).scores_B.tolist() == [5, 3]
    assert score(Length(weight=-0.5), *texts).scores_B.tolist() == [-3, -2]


def test_length_with_a_target_is_best_there():
    texts = ("the soup was great .", "the soup .", "the soup was great ! ! !")
    assert score(Length(target=6, weight=2.0), *texts).scores_B.tolist() == [0, -4, -4]
