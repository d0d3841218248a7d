"""The laws of advantage estimators."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import torch

from rlhf_lab.contracts import AdvantageInputs
from rlhf_lab.testing.every_kind import differ, each_parameter_counts
from rlhf_lab.testing.sentences import finite, require, same, shown
from rlhf_lab.testing.settings import beside

LENGTHS, GROUPS = (4, 1, 6, 3, 2, 6), (0, 1, 0, 1, 1, 0)
WIDTH = 6
WITHIN_GROUPS = ((2, 1, 5, 4, 3, 0), (5, 3, 0, 4, 1, 2))
ANY_ORDER = ((5, 4, 3, 2, 1, 0), (1, 3, 4, 0, 2, 5))
OPTIONAL = {
    "values_BT": "values",
    "greedy_scores_B": "greedy_scores",
    "logprobs_BT": "logprobs",
    "ref_logprobs_BT": "logprobs",
}


def inputs(width: int = WIDTH, filler: float = 0.0, dtype: torch.dtype = torch.float64) -> AdvantageInputs:
    """Two mixed groups of three responses of unequal length, `filler` in the masked places."""
    rng = np.random.default_rng(3)
    mask_BT = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    noise = [torch.tensor(rng.normal(size=(len(LENGTHS), WIDTH)), dtype=dtype) for _ in range(4)]
    rewards_BT, values_BT, logprobs_BT, ref_BT = (
        torch.nn.functional.pad(x, (0, width - WIDTH)).masked_fill(~mask_BT, filler) for x in noise
    )
    scores_B, greedy_B = (torch.tensor(rng.normal(size=len(LENGTHS)), dtype=dtype) for _ in range(2))
    return AdvantageInputs(
        rewards_BT,
        mask_BT,
        scores_B,
        group_B=torch.tensor(GROUPS),
        ended_B=torch.tensor([True, False, True, True, False, True]),
        values_BT=values_BT,
        greedy_scores_B=greedy_B,
        logprobs_BT=logprobs_BT,
        ref_logprobs_BT=ref_BT,
    )


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    return {f.name: x for f in dataclasses.fields(batch) if isinstance(x := getattr(batch, f.name), torch.Tensor)}


def estimated(estimator: Any, batch: AdvantageInputs, state: dict[str, float] | None = None) -> dict[str, Any]:
    """Advantages, returns and the state that follows."""
    found = estimator.estimate(batch, state or {})
    return {"advantages_BT": found.advantages_BT, "returns_BT": found.returns_BT, "state": dict(found.state)}


def masked_places_are_0(estimator: Any) -> None:
    """Advantages and returns have the shape and the type of the rewards, are finite, and 0 in masked places."""
    batch = inputs(dtype=torch.float32)
    for name in ("advantages_BT", "returns_BT"):
        x_BT = estimated(estimator, batch)[name]
        require(
            x_BT.shape == batch.mask_BT.shape, f"{name} has shape {tuple(x_BT.shape)}, expected {tuple(batch.mask_BT.shape)}"
        )
        require(x_BT.dtype == torch.float32, f"{name} are {x_BT.dtype} where the rewards are torch.float32")
        finite(x_BT, name)
        require((x_BT[~batch.mask_BT] == 0).all(), f"{name} in masked places are {shown(x_BT[~batch.mask_BT])}")


def padding_changes_nothing(estimator: Any) -> None:
    """Neither more padding on the right nor what stands in it (0, 1e9, NaN, ∞) changes a number."""
    plain = estimated(estimator, inputs())
    for filler in (0.0, 1e9, math.nan, math.inf):
        wide = estimated(estimator, inputs(WIDTH + 5, filler))
        for name in ("advantages_BT", "returns_BT"):
            same(wide[name][:, :WIDTH], plain[name], f"{name} with {filler} in 5 more columns of padding", 1e-12)
            require((wide[name][:, WIDTH:] == 0).all(), f"{name} in the padding are {shown(wide[name][:, WIDTH:])}")
        same(wide["state"], plain["state"], "the state", 1e-12)


def order_changes_nothing(estimator: Any) -> None:
    """Responses may stand in any order, also within their group, and groups may have any numbers."""
    batch, plain = inputs(), estimated(estimator, inputs())
    for order in (*WITHIN_GROUPS, *ANY_ORDER):
        index = torch.tensor(order)
        moved = dataclasses.replace(batch, **{name: x[index] for name, x in tensors(batch).items()})
        moved = dataclasses.replace(moved, group_B=7 - 3 * moved.group_B)
        found = estimated(estimator, moved)
        for name in ("advantages_BT", "returns_BT"):
            same(found[name], plain[name][index], f"{name} in the order {order}", 1e-12)


def an_estimate_is_pure(estimator: Any) -> None:
    """Inputs and state are left as they are, and the same comes out twice."""
    batch, state = inputs(filler=5.0), estimated(estimator, inputs())["state"]
    copies, before = {name: x.clone() for name, x in tensors(batch).items()}, dict(state)
    first, second = (estimated(estimator, batch, state) for _ in range(2))
    same(tensors(batch), copies, "the input after the estimate")
    same(state, before, "the old state")
    same(second, first, "the second estimate")


def its_state_survives_json(estimator: Any) -> None:
    """The state is JSON of finite numbers, and after JSON the next estimate is the same."""
    state = estimated(estimator, inputs())["state"]
    for name, value in state.items():
        finite(value, f"state[{name!r}]")
    after = estimated(estimator, inputs(), json.loads(json.dumps(state)))
    same(after, estimated(estimator, inputs(), state), "the estimate from a state that went through JSON")


def it_reads_nothing_that_it_does_not_need(estimator: Any) -> None:
    """What `needs` does not name may be missing (values, greedy scores, log-probs) or anything (groups)."""
    batch, plain = inputs(), estimated(estimator, inputs())
    known = {*OPTIONAL.values(), "groups"}
    require(set(estimator.needs) <= known, f"it needs {sorted(estimator.needs)}; an estimator can ask for {sorted(known)}")
    bare = dataclasses.replace(batch, **{name: None for name, need in OPTIONAL.items() if need not in estimator.needs})
    same(estimated(estimator, bare), plain, "the estimate without what is not in `needs`")
    if "groups" not in estimator.needs:
        same(estimated(estimator, regrouped(batch)), plain, "the estimate in other groups, which are not in `needs`,")


def it_reads_all_that_it_needs(estimator: Any) -> None:
    """What `needs` names changes something, in one setting at least: a critic is not trained for nothing."""
    for need in estimator.needs:
        read = any(reads(one, need) for one in beside(estimator) if need in one.needs)
        require(read, f"it needs {need!r}, and other numbers there change nothing")


def reads(estimator: Any, need: str) -> bool:
    """Whether other numbers for what the need brings change the estimate."""
    batch, plain = inputs(), estimated(estimator, inputs())
    if need == "groups":
        return differ(estimated(estimator, regrouped(batch)), plain)
    names = [name for name, brought in OPTIONAL.items() if brought == need]
    moved = [dataclasses.replace(batch, **{name: other(getattr(batch, name))}) for name in names]
    return any(differ(estimated(estimator, one), plain) for one in moved)


def regrouped(batch: AdvantageInputs) -> AdvantageInputs:
    return dataclasses.replace(batch, group_B=torch.tensor([0, 0, 1, 1, 0, 1]))


def other(x: torch.Tensor) -> torch.Tensor:
    """Other numbers, by an amount that is another one in each response."""
    return x + torch.arange(1.0, len(x) + 1).to(x).reshape(-1, *[1] * (x.dim() - 1))


def what_comes_after_is_worth_its_value(estimator: Any) -> None:
    """With a critic, the value after the last place (`truncation: bootstrap`) counts like γ times it in the last reward."""
    if "values" not in estimator.needs:
        return
    batch, after_B = inputs(), torch.tensor([0.0, 1.3, 0.0, 0.0, -0.7, 0.0], dtype=torch.float64)
    found = estimated(estimator, dataclasses.replace(batch, after_B=after_B))
    gamma = getattr(estimator, "gamma", getattr(getattr(estimator, "source", None), "gamma", 1.0))
    last_B1 = batch.mask_BT.sum(1, keepdim=True) - 1
    paid = dataclasses.replace(batch, rewards_BT=batch.rewards_BT.scatter_add(1, last_B1, gamma * after_B[:, None]))
    for name in ("advantages_BT", "returns_BT"):
        same(found[name], estimated(estimator, paid)[name], f"{name} with after_B", 1e-12)


def outcome(estimator: Any) -> list[dict[str, Any]]:
    first = estimated(estimator, inputs())
    return [first, estimated(estimator, inputs(), first["state"])]


LAWS = (
    masked_places_are_0,
    padding_changes_nothing,
    order_changes_nothing,
    an_estimate_is_pure,
    its_state_survives_json,
    it_reads_nothing_that_it_does_not_need,
    it_reads_all_that_it_needs,
    what_comes_after_is_worth_its_value,
    each_parameter_counts(outcome, tries=100),
)
