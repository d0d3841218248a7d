"""The laws of losses that learn from comparisons directly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.contracts import Preferences, Ranking
from rlhf_lab.testing.every_kind import differ, each_parameter_counts
from rlhf_lab.testing.sentences import finite, require, same, shown

PAIRS = {
    "log": [[-3.0, -4.5], [-6.0, -5.0], [-2.0, -2.5]],
    "ref": [[-3.5, -4.0], [-5.5, -5.5], [-2.2, -2.1]],
    "lengths": [[3, 4], [6, 2], [2, 5]],
}
SINGLES = {"log": [[-3.0], [-6.0], [-2.0]], "ref": [[-3.5], [-5.5], [-2.2]], "lengths": [[3], [6], [2]]}
VERDICTS = [[True], [False], [True]]
RANKINGS = [Ranking("x", ("a", "b", "c"), (1.0, 0.0, 2.0)), Ranking("y", ("a", "b"), (0.0, 0.0))]


def k_of(loss: Any) -> int:
    """Responses in an example: pairs, or singles with a verdict."""
    return len(loss.examples(list(RANKINGS))[0].completions)


def batch(loss: Any, move: Tensor | float = 0.0) -> Preferences:
    """Three examples of the form that the loss takes, with only what it needs; `move` is added to the log-probs."""
    numbers = PAIRS if k_of(loss) == 2 else SINGLES
    log_BK, ref_BK = (torch.tensor(numbers[key], dtype=torch.float64) for key in ("log", "ref"))
    preferred = [[True, False]] * 3 if k_of(loss) == 2 else VERDICTS
    full = Preferences((log_BK + move).requires_grad_(), torch.tensor(numbers["lengths"]), torch.tensor(preferred), ref_BK)
    if "mismatched" in loss.needs:
        shuffled_B = (full.log_ratios_BK.detach()[:, 0]).roll(1)
        full = dataclasses.replace(full, baseline=loss.baseline(shuffled_B, full.preferred_BK[:, 0]))
    return full if "reference" in loss.needs else dataclasses.replace(full, ref_logprobs_BK=None)


def evaluated(loss: Any, examples: Preferences) -> tuple[Tensor, Tensor]:
    """losses_B and the gradient of their sum by the log-probs."""
    losses_B = loss.losses(examples)
    return losses_B.detach(), torch.autograd.grad(losses_B.sum(), examples.logprobs_BK)[0]


def rows(examples: Preferences, index: Sequence[int]) -> Preferences:
    """Some of the examples; the baseline of the whole batch stays."""
    names = ("lengths_BK", "preferred_BK", "ref_logprobs_BK")
    picked = {name: x[list(index)] for name in names if (x := getattr(examples, name)) is not None}
    return dataclasses.replace(examples, logprobs_BK=examples.logprobs_BK.detach()[list(index)].requires_grad_(), **picked)


def there_is_a_loss_for_each_example(loss: Any) -> None:
    """One finite loss per example, and a finite gradient that is not 0."""
    losses_B, slopes_BK = evaluated(loss, batch(loss))
    require(losses_B.shape == (3,), f"the losses of 3 examples have shape {tuple(losses_B.shape)}")
    finite(losses_B, "the losses")
    finite(slopes_BK, "the gradient")
    require(slopes_BK.any(), "the gradient is 0 everywhere")


def examples_do_not_hear_each_other(loss: Any) -> None:
    """An example's loss and gradient are the same alone, and in any order, given the same baseline."""
    whole = batch(loss)
    losses_B, slopes_BK = evaluated(loss, whole)
    for index in ([0], [1], [2], [2, 0, 1]):
        some_B, some_BK = evaluated(loss, rows(whole, index))
        same(some_B, losses_B[index], f"the losses of examples {index}", 1e-12)
        same(some_BK, slopes_BK[index], f"the gradient of examples {index}", 1e-12)


def only_differences_count_unless_it_is_said(loss: Any) -> None:
    """A constant added to both log-probs of a pair changes nothing, unless the docstring speaks of the constant."""
    if k_of(loss) != 2:
        return
    shifted_B, _ = evaluated(loss, batch(loss, torch.tensor([[0.7], [-0.4], [0.2]], dtype=torch.float64)))
    matters = bool((shifted_B - evaluated(loss, batch(loss))[0]).abs().max() > 1e-9)
    said = "constant" in (type(loss).__doc__ or "")
    require(said or not matters, "a constant changes the loss, and the docstring does not speak of one")


def the_preferred_response_is_pushed_up(loss: Any) -> None:
    """Near the reference, a lower log-prob of the preferred response never costs less, nor a higher one of the other."""
    near = batch(loss)
    if near.ref_logprobs_BK is not None:
        near = dataclasses.replace(near, logprobs_BK=near.ref_logprobs_BK.clone().requires_grad_())
    _, slopes_BK = evaluated(loss, near)
    up, down = slopes_BK[near.preferred_BK], slopes_BK[~near.preferred_BK]
    require((up <= 0).all() and up.any(), f"the slopes by log-probs of preferred responses are {shown(up)}")
    require((down >= 0).all(), f"the slopes by log-probs of rejected responses are {shown(down)}")


def it_reads_what_it_needs_and_nothing_else(loss: Any) -> None:
    """`needs` names exactly what is read: `reference` the reference's log-probs, `mismatched` the baseline."""
    require(
        set(loss.needs) <= {"reference", "mismatched"}, f"it needs {sorted(loss.needs)}; it can ask for reference, mismatched"
    )
    plain = batch(loss)
    losses_B, _ = evaluated(loss, plain)
    if "reference" in loss.needs:
        moved = dataclasses.replace(plain, ref_logprobs_BK=plain.ref_logprobs_BK + torch.tensor([1.0, -1.0])[: k_of(loss)])
        require(differ(evaluated(loss, moved)[0], losses_B), "it needs 'reference' and other log-probs of it change nothing")
    if "mismatched" in loss.needs:
        moved = dataclasses.replace(plain, baseline=plain.baseline + 1.0)
        require(differ(evaluated(loss, moved)[0], losses_B), "it needs 'mismatched' and another baseline changes nothing")
        require(not plain.baseline.requires_grad, "the baseline carries a gradient")


def a_loss_is_pure(loss: Any) -> None:
    """The examples are left as they are, and the same comes out twice."""
    examples, untouched = batch(loss), batch(loss)
    first, second = (list(evaluated(loss, examples)) for _ in range(2))
    same(second, first, "the second evaluation")
    parts = [{key: x for key, x in vars(one).items() if isinstance(x, Tensor)} for one in (examples, untouched)]
    same(*parts, "the examples after the loss")


def examples_are_pairs_or_verdicts(loss: Any) -> None:
    """`examples` gives pairs rated (1, 0) in this order, or single responses rated 1 or 0; ties give nothing."""
    given = list(RANKINGS)
    made = loss.examples(given)
    require(given == RANKINGS, "the list of rankings has been changed")
    allowed = {(1.0, 0.0), (1.0,), (0.0,)}
    require(made and all(r.ratings in allowed and len(r.ratings) == len(r.completions) for r in made), shown(made))
    require(len({len(r.completions) for r in made}) == 1, f"pairs and single responses are mixed: {shown(made)}")


def outcome(loss: Any) -> list[Any]:
    """Losses and gradients at two places, and the examples that are made."""
    found = [list(evaluated(loss, batch(loss, move))) for move in (0.0, torch.tensor([[3.0], [-2.0], [40.0]]))]
    return [found, [vars(r) for r in loss.examples(list(RANKINGS))]]


LAWS = (
    there_is_a_loss_for_each_example,
    examples_do_not_hear_each_other,
    only_differences_count_unless_it_is_said,
    the_preferred_response_is_pushed_up,
    it_reads_what_it_needs_and_nothing_else,
    a_loss_is_pure,
    examples_are_pairs_or_verdicts,
    each_parameter_counts(outcome, tries=100, read_by_the_core=frozenset()),
)
