"""The laws of reward sources, in the kit's small world."""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from rlhf_lab.contracts import Rollout, Scores
from rlhf_lab.testing import world
from rlhf_lab.testing.every_kind import each_parameter_counts, result
from rlhf_lab.testing.sentences import finite, require, same

DEMONSTRATIONS = world.TinyWorld(world.TinyData()).demonstrations("train")
PROMPTS = tuple(d.prompt for d in DEMONSTRATIONS[:5])
TEXTS = (
    "a great , wonderful w1",  # for rewards that know English
    DEMONSTRATIONS[1].completion.upper(),  # for rewards that know the answer
    "",
    "w1 w1 w1 w1 w1 w1",
    DEMONSTRATIONS[4].completion,
)
OWN_COLUMNS = frozenset(
    {"kl", "kl_se", "score", "return", "entropy", "beta", "reward_proxy", "reward_gold", "step", "stage", "split"}
)
TOLERANCE = 1e-5


def opened(reward: Any) -> Any:
    """A live scorer that has seen one batch, always the same: some keep moments of what they have seen."""
    scorer = reward.open(world.context())
    scorer(world.encoded(PROMPTS[:2], ("w1 w1", "w2 w3 w4")))
    return scorer


def scored(scorer: Any, rollout: Rollout) -> Scores:
    found = scorer(rollout)
    return found if isinstance(found, Scores) else Scores(found)


def there_is_a_number_for_each_response(reward: Any) -> None:
    """One finite score per response, without a graph; and so for each column, whose name is not one of the core's."""
    found = scored(opened(reward), world.encoded(PROMPTS, TEXTS))
    for name, values in {"the scores": found.scores_B, **found.columns}.items():
        x = torch.as_tensor(values)
        require(x.shape == (len(TEXTS),), f"{name} have shape {tuple(x.shape)} for {len(TEXTS)} responses")
        finite(x, name)
        require(not x.requires_grad, f"{name} carry a graph; score under torch.no_grad()")
    require(not OWN_COLUMNS & set(found.columns), f"the columns {sorted(OWN_COLUMNS & set(found.columns))} belong to the core")


def a_score_does_not_depend_on_its_neighbours(reward: Any) -> None:
    """One at a time, all together, in another order, and among longer neighbours, a response has one score."""
    together = scored(opened(reward), world.encoded(PROMPTS, TEXTS)).scores_B
    for i, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        alone = scored(opened(reward), world.encoded((prompt,), (text,))).scores_B
        same(alone[0], together[i], f"the score of {text!r} alone", TOLERANCE)
    back = scored(opened(reward), world.encoded(PROMPTS[::-1], TEXTS[::-1])).scores_B
    same(back.flip(0), together, "the scores in the opposite order", TOLERANCE)
    longer = scored(opened(reward), world.encoded((*PROMPTS, PROMPTS[0]), (*TEXTS, "w5 " * 20))).scores_B
    same(longer[: len(TEXTS)], together, "the scores beside a long neighbour", TOLERANCE)


def padding_changes_nothing(reward: Any) -> None:
    """More padding on the left and on the right, with any token in it, changes no score."""
    rollout = world.encoded(PROMPTS, TEXTS)
    plain = scored(opened(reward), rollout).scores_B
    for filler in (world.PAD, world.EOS, world.VOCABULARY.index("w1")):
        padded = scored(opened(reward), world.padded(rollout, 3, 2, filler)).scores_B
        same(padded, plain, f"the scores with {world.VOCABULARY[filler]} in 3 + 2 more columns of padding", TOLERANCE)


def scoring_is_determined_and_pure(reward: Any) -> None:
    """Two scorers that have seen the same score alike, and the responses are left as they are."""
    rollout, untouched = (world.encoded(PROMPTS, TEXTS) for _ in range(2))
    first, second = (scored(opened(reward), rollout) for _ in range(2))
    same(second.scores_B, first.scores_B, "the scores of a second scorer")
    same(vars(rollout), vars(untouched), "the rollout after it was scored")


def its_state_survives_json(reward: Any) -> None:
    """A fresh scorer that is given the state of an old one, through JSON, scores as the old one does."""
    old, new = opened(reward), reward.open(world.context())
    if not hasattr(old, "state_dict"):
        new = opened(reward)
    else:
        new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    rollout = world.encoded(PROMPTS[1:3], ("w1 w2", "w1 w1 w1"))
    for turn in ("", " after that"):
        same(scored(new, rollout).scores_B, scored(old, rollout).scores_B, f"the score of the resumed scorer{turn}")


def an_ensemble_is_no_better_than_its_mean(reward: Any) -> None:
    """Where columns member_0, member_1, … are given, no score is above their mean: an ensemble is careful."""
    found = scored(opened(reward), world.encoded(PROMPTS, TEXTS))
    members = [x for name, x in found.columns.items() if re.fullmatch(r"member_\d+", name)]
    if members:
        above = found.scores_B - torch.stack(members).mean(0)
        require((above <= TOLERANCE).all(), f"a score is {above.max().item():g} above the mean of the members")


def outcome(reward: Any) -> list[Any]:
    """Scores and columns of two batches by a new scorer; of the first some never ended, in the second text is the prompt."""
    scorer = reward.open(world.context())
    first = world.encoded(PROMPTS, TEXTS, ended=[True, False, True, False, True])
    return [result(scored_to_tensors(scorer), batch) for batch in (first, world.encoded(TEXTS[:1], PROMPTS[3:4]))]


def scored_to_tensors(scorer: Any) -> Any:
    def score(batch: Rollout) -> list[Any]:
        found = scored(scorer, batch)
        return [found.scores_B, {name: torch.as_tensor(x) for name, x in found.columns.items()}]

    return score


LAWS = (
    there_is_a_number_for_each_response,
    a_score_does_not_depend_on_its_neighbours,
    padding_changes_nothing,
    scoring_is_determined_and_pure,
    its_state_survives_json,
    an_ensemble_is_no_better_than_its_mean,
    each_parameter_counts(outcome, tries=100),
)
