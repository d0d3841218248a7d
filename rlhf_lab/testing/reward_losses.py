"""The laws of losses of the reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.contracts import Ranking
from rlhf_lab.testing.every_kind import differ, each_parameter_counts
from rlhf_lab.testing.sentences import require, same, shown

SCORES = [[0.3, -1.0, 2.0, 0.5], [1.5, 0.2, -0.4, 0.0]]
RATINGS = [[0.0, 2.0, 1.0, 1.0], [1.0, 0.0, 0.0, 3.0]]
RANKINGS = [Ranking("x", ("a", "b", "c"), (1.0, 0.0, 2.0)), Ranking("y", ("a", "b"), (0.0, 0.0))]


def evaluated(
    loss: Any, scores: Sequence[Any] = SCORES, ratings: Sequence[Any] = RATINGS, mask: Sequence[Any] | None = None
) -> tuple[Tensor, Tensor]:
    """losses_B and their slopes by the scores."""
    scores_BK = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    ratings_BK = torch.tensor(ratings, dtype=torch.float64)
    mask_BK = torch.ones_like(ratings_BK, dtype=torch.bool) if mask is None else torch.tensor(mask)
    losses_B = loss.losses(scores_BK, ratings_BK, mask_BK)
    return losses_B.detach(), torch.autograd.grad(losses_B.sum(), scores_BK)[0]


def ties_contribute_nothing(loss: Any) -> None:
    """A prompt whose completions all tie has loss 0 and no gradient."""
    losses_B, slopes_BK = evaluated(loss, [[1.0, 2.0, -3.0]], [[4.0, 4.0, 4.0]])
    require(
        abs(losses_B.item()) < 1e-9 and slopes_BK.abs().max() < 1e-9, f"loss {losses_B.item():g}, slopes {shown(slopes_BK)}"
    )


def padding_of_k_changes_nothing(loss: Any) -> None:
    """Prompts with fewer completions are padded, with anything (0, ±1e9, NaN), and that changes nothing."""
    plain_B, plain_BK = evaluated(loss)
    for filler in (0.0, 1e9, -1e9, math.nan):
        wide = [[[*row, filler, filler] for row in rows] for rows in (SCORES, RATINGS)]
        losses_B, slopes_BK = evaluated(loss, *wide, [[True] * 4 + [False] * 2] * 2)
        same(losses_B, plain_B, f"the loss with {filler} in the padding", 1e-9)
        same(slopes_BK[:, :4], plain_BK, f"the gradient with {filler} in the padding", 1e-9)
        require((slopes_BK[:, 4:] == 0).all(), f"the gradient in the padding is {shown(slopes_BK[:, 4:])}")


def only_differences_count_unless_it_is_said(loss: Any) -> None:
    """A constant added to a prompt's scores changes nothing, unless the docstring speaks of the constant."""
    shifted_B, _ = evaluated(loss, [[s + 3.0 for s in SCORES[0]], [s - 1.0 for s in SCORES[1]]])
    matters = differ((shifted_B - evaluated(loss)[0]).abs() > 1e-9, torch.zeros(2, dtype=torch.bool))
    said = "constant" in (type(loss).__doc__ or "")
    require(said or not matters, "a constant changes the loss, and the docstring does not speak of one")


def prompts_do_not_hear_each_other(loss: Any) -> None:
    """A prompt's loss is the same alone, and its completions may stand in any order."""
    losses_B, _ = evaluated(loss)
    for b, order in ((0, (2, 0, 3, 1)), (1, (1, 3, 2, 0))):
        alone_B, _ = evaluated(loss, [[SCORES[b][k] for k in order]], [[RATINGS[b][k] for k in order]])
        same(alone_B[0], losses_B[b], f"the loss of prompt {b} alone, its completions in the order {order}", 1e-9)


def a_better_order_costs_less(loss: Any) -> None:
    """Scores in the order of the ratings have a smaller loss than scores in the opposite order; no loss is negative."""
    good, bad = (evaluated(loss, [row], [[2.0, 1.0, 0.0]])[0].item() for row in ([1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]))
    require(0 <= good < bad, f"the loss in the right order is {good:g}, in the opposite order {bad:g}")


def examples_are_rankings(loss: Any) -> None:
    """`examples` gives rankings of prompts that were there, and leaves what it was given as it was."""
    given = list(RANKINGS)
    made = loss.examples(given)
    require(given == RANKINGS, "the list of rankings has been changed")
    require(all(isinstance(r, Ranking) and r.prompt in ("x", "y") and len(r.completions) >= 2 for r in made), shown(made))


def outcome(loss: Any) -> list[Any]:
    return [*evaluated(loss), *evaluated(loss, RATINGS, SCORES), [vars(r) for r in loss.examples(RANKINGS)]]


LAWS = (
    ties_contribute_nothing,
    padding_of_k_changes_nothing,
    only_differences_count_unless_it_is_said,
    prompts_do_not_hear_each_other,
    a_better_order_costs_less,
    examples_are_rankings,
    each_parameter_counts(outcome, tries=100),
)
