"""Learning rates as a function of the step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def rate(step: int, total: int, schedule: Schedule, *, warmup: int = 0, warmup_from: float = 0.0, floor: float = 0.0) -> float:
    """Factor on the learning rate at `step` (0-based) of `total`.

    Warm-up rises linearly from `warmup_from` to 1 over `warmup` steps; then constant, or down to `floor` at the end:
    linearly, or along half a cosine (Loshchilov & Hutter 2017, eq. 5; to 10 % in Ouyang et al. 2022, C.1).
    """
    if step < warmup:
        return warmup_from + (1 - warmup_from) * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - (1 - floor) * done
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def set_rates(optimizer, factor: float) -> None:
    """Each parameter group runs at its own initial rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
