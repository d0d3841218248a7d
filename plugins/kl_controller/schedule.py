"""A KL coefficient that follows a plan and listens to nothing."""

import math
from typing import Literal

from rlhf_lab.contracts import Component, hookimpl, param


def progress(done: float, shape: str) -> float:
    """The share of the way from first to last value, at share `done` of the time: f(0) = 0, f(1) = 1.

    linear: f = done. cosine: f = (1 − cos π·done)/2 (Loshchilov & Hutter 2017, eq. 5, without restarts).
    """
    return done if shape == "linear" else (1 - math.cos(math.pi * done)) / 2


class Schedule(Component):
    """β_n = β + (β_final − β)·f(n/N), and β·n/W in the first W updates, with n counting updates from 0.

    N updates after the warm-up β is at its final value and stays there. β in score per nat. State: `beta`, `updates`.
    """

    kind, name = "kl_controller", "schedule"
    beta: float = param(0.02, "β at the start, or after the warm-up", ge=0, allow_inf_nan=False)
    final: float = param(0.0, "β at the end", ge=0, allow_inf_nan=False)
    shape: Literal["linear", "cosine"] = param("linear", "how β goes from the one to the other")
    steps: int = param(100, "N, updates from the one to the other", ge=1, unit="updates")
    warmup: int = param(0, "W, updates in which β rises from 0 in a straight line", ge=0, unit="updates")

    def start(self):
        return {"beta": self.at(0), "updates": 0}

    def update(self, state, kl, n_sequences):
        n = int(state["updates"]) + 1
        return {"beta": self.at(n), "updates": n}

    def at(self, n: int) -> float:
        """The equation above."""
        if n < self.warmup:
            return self.beta * n / self.warmup
        done = progress(min(1.0, (n - self.warmup) / self.steps), self.shape)
        return (1 - done) * self.beta + done * self.final


@hookimpl
def register_components(register):
    register(Schedule)
