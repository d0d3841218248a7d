"""The laws of loss terms."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.contracts import Minibatch, PolicyOutput
from rlhf_lab.rl import aggregation
from rlhf_lab.testing.advantages import tensors
from rlhf_lab.testing.every_kind import differ, each_parameter_counts
from rlhf_lab.testing.sentences import require, same, shown
from rlhf_lab.testing.settings import beside

LENGTHS, WIDTH = (4, 1, 6, 3, 2, 6), 6
AGGREGATIONS: tuple[aggregation.Aggregation, ...] = typing.get_args(aggregation.Aggregation)
SPLITS = ((1,) * 6, (2, 4), (5, 1))
READ_BY_THE_CORE = frozenset({"weight", "ratio"})
DIFFERENTIABLE = {"logprobs_BT": "", "entropy_BT": "entropy", "values_BT": "values", "kl_BT": "full_kl"}
OPTIONAL = {"ref_logprobs_BT": "ref_logprobs", "old_values_BT": "values"}


def update(
    rows: slice = slice(None), filler: float = 0.0, how: aggregation.Aggregation = "token_mean", beta: float = 0.3
) -> Any:
    """New log-probs, entropies, values and KLs (leaves), and the minibatch; cut to `rows`, with `filler` where it is masked."""
    rng = np.random.default_rng(5)
    mask_BT = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]

    def draw(scale: float = 1.0, shift: float = 0.0) -> Tensor:
        x_BT = torch.tensor(shift + scale * rng.normal(size=mask_BT.shape))
        return x_BT.masked_fill(~mask_BT, filler)[rows]

    logprobs, old, ref = draw(0.8, -2.0), draw(0.8, -2.0), draw(0.8, -2.0)
    new = [logprobs, draw(0.1, 1.0), draw(), draw(0.1, 0.5)]
    weights, token_weights = (aggregation.weights(mask_BT, a, WIDTH).double()[rows] for a in (how, "token_mean"))
    batch = Minibatch(
        mask_BT=mask_BT[rows],
        weights_BT=weights,
        token_weights_BT=token_weights,
        old_logprobs_BT=old,
        ref_logprobs_BT=ref,
        advantages_BT=draw(),
        returns_BT=draw(),
        old_values_BT=draw(),
        scores_B=torch.zeros(len(LENGTHS))[rows],
        beta=beta,
    )
    return [x.requires_grad_() for x in new], batch


def evaluated(term: Any, leaves: list[Tensor | None], batch: Minibatch) -> dict[str, Any]:
    """Value, metrics, and gradients by the differentiable quantities (0 where they are not used)."""
    loss = term.loss(PolicyOutput(*leaves), batch)
    offered = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(loss.value, offered, allow_unused=True))
    slopes = [None if leaf is None else next(found) for leaf in leaves]
    gradients = [torch.zeros_like(batch.weights_BT) if g is None else g for g in slopes]
    metrics = {name: value.detach() for name, value in loss.metrics.items()}
    return {"value": loss.value.detach(), "metrics": metrics, "gradients": gradients}


def masked_places_change_nothing(term: Any) -> None:
    """What stands in masked places changes neither value nor metrics nor gradient, and no gradient goes there."""
    mask_BT = update()[1].mask_BT
    for how in AGGREGATIONS:
        plain = evaluated(term, *update(how=how))
        same(evaluated(term, *update(filler=0.7, how=how)), plain, "the term with 0.7 in masked places", 1e-6)
        for name, gradient in zip(DIFFERENTIABLE, plain["gradients"], strict=True):
            require(gradient.isfinite().all(), f"the gradient by {name} is {shown(gradient)}")
            require((gradient[~mask_BT] == 0).all(), f"the gradient by masked {name} is {shown(gradient[~mask_BT])}")


def parts_add_up(term: Any) -> None:
    """Under every aggregation, values, metrics and gradients of micro-batches add up to those of the minibatch."""
    for how, sizes in itertools.product(AGGREGATIONS, SPLITS):
        whole, edges = evaluated(term, *update(how=how)), np.cumsum([0, *sizes])
        parts = [evaluated(term, *update(slice(a, b), how=how)) for a, b in itertools.pairwise(edges)]
        said = f"with {how} and parts of {sizes}, the sum of"
        same(sum(part["value"] for part in parts), whole["value"], f"{said} the values", 1e-12)
        for name, value in whole["metrics"].items():
            same(sum(part["metrics"][name].double() for part in parts), value.double(), f"{said} {name}", 1e-6)
        for i, name in enumerate(DIFFERENTIABLE):
            joined = torch.cat([part["gradients"][i] for part in parts])
            same(joined, whole["gradients"][i], f"{said} the gradients by {name}", 1e-12)


def a_term_is_pure(term: Any) -> None:
    """The batch is left as it is, and the same comes out twice."""
    leaves, batch = update()
    copies = {name: x.clone() for name, x in tensors(batch).items()}
    first, second = (evaluated(term, leaves, batch) for _ in range(2))
    same(tensors(batch), copies, "the batch after the loss")
    same(second, first, "the second evaluation")


def it_reads_nothing_that_it_does_not_need(term: Any) -> None:
    """What `needs` does not name may be missing: entropy, values, reference, exact KL; and on pretraining text all else."""
    known = {"pretrain", "beta", *OPTIONAL.values(), *DIFFERENTIABLE.values()} - {""}
    require(set(term.needs) <= known, f"it needs {sorted(term.needs)}; a term can ask for {sorted(known)}")
    leaves, batch = update()
    whole = evaluated(term, leaves, batch)
    lean = dataclasses.replace(batch, **{name: None for name, need in OPTIONAL.items() if need not in term.needs})
    needed = {"", *term.needs}
    offered = [x if need in needed else None for x, need in zip(leaves, DIFFERENTIABLE.values(), strict=True)]
    same(evaluated(term, offered, lean), whole, "the term without what is not in `needs`")
    if "beta" not in term.needs:
        same(
            evaluated(term, leaves, dataclasses.replace(batch, beta=0.7)),
            whole,
            "at another β, which is not in `needs`, the term",
        )
    if "pretrain" in term.needs:
        zeros = {name: torch.zeros_like(batch.weights_BT) for name in ("old_logprobs_BT", "advantages_BT", "returns_BT")}
        same(evaluated(term, leaves, dataclasses.replace(batch, **zeros)), whole, "on pretraining text, without advantages, it")


def it_reads_all_that_it_needs(term: Any) -> None:
    """What `needs` names changes something, in one setting at least."""
    for need in set(term.needs) - {"pretrain"}:
        read = any(reads(one, need) for one in beside(term) if need in one.needs)
        require(read, f"it needs {need!r}, and other numbers there change nothing")


def reads(term: Any, need: str) -> bool:
    """Whether other numbers for what the need brings change the term, or a gradient goes there."""
    leaves, batch = update()
    whole = evaluated(term, leaves, batch)
    if need == "beta":
        return differ(evaluated(term, leaves, dataclasses.replace(batch, beta=0.7)), whole)
    for name in (name for name, brought in OPTIONAL.items() if brought == need):
        if differ(evaluated(term, leaves, dataclasses.replace(batch, **{name: getattr(batch, name) + 1.0})), whole):
            return True
    slopes = zip(DIFFERENTIABLE.values(), whole["gradients"], strict=True)
    return any(bool(gradient.any()) for brought, gradient in slopes if brought == need)


def it_is_a_scalar_with_a_weight(term: Any) -> None:
    """The value and every metric are single numbers, and `weight` is ≥ 0."""
    found = evaluated(term, *update())
    require(getattr(term, "weight", -1) >= 0, f"weight is {getattr(term, 'weight', None)!r}; a term has a parameter weight ≥ 0")
    for name, value in {"the value": found["value"], **found["metrics"]}.items():
        require(value.shape == (), f"{name} has shape {tuple(value.shape)}, expected a single number")


def outcome(term: Any) -> list[Any]:
    """Also where there is a KL in the reward; an error there is an outcome, too."""
    found: list[Any] = []
    for beta in (0.0, 0.3):
        try:
            found.append(evaluated(term, *update(beta=beta)))
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


LAWS = (
    masked_places_change_nothing,
    parts_add_up,
    a_term_is_pure,
    it_reads_nothing_that_it_does_not_need,
    it_reads_all_that_it_needs,
    it_is_a_scalar_with_a_weight,
    each_parameter_counts(outcome, tries=100, read_by_the_core=READ_BY_THE_CORE),
)
