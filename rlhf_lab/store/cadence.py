"""How often something is done: every so many seconds, or every so many steps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

UNITS = {"step": "steps", "steps": "steps", "s": "seconds", "second": "seconds", "seconds": "seconds"}


@dataclass(frozen=True)
class Cadence:
    """Whichever comes first. Counted in steps it happens at the same steps however often a stage is interrupted."""

    seconds: float = math.inf
    steps: float = math.inf

    def due(self, step: int, seconds: float) -> bool:
        """After `step` steps, `seconds` after the last time."""
        return seconds >= self.seconds or (step > 0 and step % self.steps == 0)


NEVER = Cadence()


def cadence(value: float | str | Mapping[str, float]) -> Cadence:
    """300, "300 seconds", "5 steps", {steps: 5}, {seconds: 300, steps: 50}. Raises ValueError for anything else."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([\d.]+)\s*([a-z]+)\s*", value)) and match[2] in UNITS:
        value = {UNITS[match[2]]: float(match[1])}
    elif isinstance(value, int | float):
        value = {"seconds": value}
    fits = isinstance(value, Mapping) and value and set(value) <= {"steps", "seconds"} and all(n > 0 for n in value.values())
    if not fits or value.get("steps", 1) % 1:
        raise ValueError("give seconds, as 300, or whole steps, as {steps: 5} or '5 steps'")
    return Cadence(**value)


def readable(value: float | str | dict[str, float]) -> float | str | dict[str, float]:
    """The value as it is, if it can be read."""
    cadence(value)
    return value
