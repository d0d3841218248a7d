"""What happens when a loss, a gradient or a score is NaN or infinite: nothing goes on in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from rlhf_lab.errors import NumericsError

OnNaN = Literal["fail", "stop", "continue"]
ABOUT = (
    "what a loss, gradient or score that is not finite does: `fail` the run, `stop` the stage with the weights from before, or "
    "`continue` without that update; in the tables the row has its NaN, and not_finite counts the updates left out"
)


def all_finite(row: Mapping[str, float]) -> bool:
    return all(math.isfinite(value) for value in row.values())


def may_step(row: Mapping[str, float], policy: OnNaN, where: str) -> bool:
    """Whether an update with these losses and gradient norms is made. Raises NumericsError under `fail` where it cannot be."""
    fine = all_finite(row)
    if not fine and policy == "fail":
        wrong = {name: value for name, value in row.items() if not math.isfinite(value)}
        raise NumericsError(
            f"{where}: the loss is not finite: {wrong}; lower the learning rate, look at the reward, "
            "or say with on_nan what is to happen"
        )
    return fine


def kept(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The state after a step, or the one before it where a NaN came into it, which would stay for ever."""
    return dict(after if all_finite(after) else before)
