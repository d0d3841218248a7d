"""A reward that leaves traces: what it prints, when it was at work, on which devices, and how often it was asked."""

import json
import os
import signal
import time
from pathlib import Path

import torch

from rlhf_lab import Component, hookimpl, param
from rlhf_lab.contracts import Scores


class Observed(Component):
    """A line to `file` for each batch of rollouts."""

    kind, name = "reward", "observed"
    file: str = param(..., "where it writes what it saw")
    label: str = param("", "what stands in each line")
    seconds: float = param(0.0, "how long a batch takes", ge=0, unit="s")
    gigabytes: float = param(0.0, "memory that it takes and keeps", ge=0)
    dies_if: str = param("", "a file; while it exists the process kills itself")

    def open(self, ctx):
        kept = torch.ones(int(self.gigabytes * 2.5e8))

        def score(rollout):
            print("said in python")
            os.system("echo said by a child; echo and as an error >&2")
            begun = time.time()
            time.sleep(self.seconds)
            if self.dies_if and Path(self.dies_if).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            self._note(begun)
            return Scores(torch.zeros(len(rollout)) + kept.sum() * 0)

        return score

    def _note(self, begun):
        seen = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}
        line = json.dumps({"label": self.label, "pid": os.getpid(), "begun": begun, "ended": time.time(), **seen})
        with open(self.file, "a") as file:
            file.write(line + "\n")


@hookimpl
def register_components(register):
    register(Observed)
