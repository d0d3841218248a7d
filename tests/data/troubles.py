"""Rewards that go wrong, each in its own way."""

import os
import signal
import time

import torch

from rlhf_lab import Component, hookimpl, param


def scorer(name, score):
    class Trouble(Component):
        """A reward for tests of failure."""

        kind = "reward"
        seconds: float = param(0.0, "how long it takes where it is slow", ge=0, unit="s")

        def open(self, ctx):
            return lambda rollout: score(self, rollout)

    Trouble.name = name
    return Trouble


def raises(self, rollout):
    if "TROUBLE_MENDED" not in os.environ:
        raise KeyError("no such\nword")
    return torch.zeros(len(rollout))


def slow(self, rollout):
    time.sleep(float(os.environ.get("TROUBLE_SECONDS", self.seconds)))
    return torch.zeros(len(rollout))


TROUBLES = {
    "raises": raises,
    "slow": slow,
    "nan": lambda self, rollout: torch.full((len(rollout),), float("nan")),
    "one_too_many": lambda self, rollout: torch.zeros(len(rollout) + 1),
    "matrix": lambda self, rollout: torch.zeros(len(rollout), 1),
    "dies": lambda self, rollout: os.kill(os.getpid(), signal.SIGKILL),
}


@hookimpl
def register_components(register):
    for name, score in TROUBLES.items():
        register(scorer(name, score))
