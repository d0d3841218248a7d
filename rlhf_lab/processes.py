"""Several processes at one run (`resources.processes`): each computes the gradient of its share, all take the same step.

Everything else is done by each of them alike: random streams are named, so all draw the same rollouts. Loss terms and their
weights are those of the whole minibatch (contracts.py, Minibatch), so gradients of shares add up to its gradient: a sum,
not a mean. The first process writes; what the others write goes to a folder of their own that is thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def rank() -> int:
    """Which of them this is, 0 being the one that writes; torchrun and accelerate say so in the environment."""
    return int(os.environ.get("RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0


def connect() -> None:
    """Waits for the others, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    """How many processes are at this run."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def share(n_rows: int) -> Tensor:
    """The rows of a minibatch that are this process's, next to each other."""
    return torch.arange(n_rows).tensor_split(count())[rank()]


@torch.no_grad()
def add_up_gradients(parameters: Sequence[Tensor]) -> None:
    """The gradient of the whole minibatch, the same bytes in each process; still none where nobody has one."""
    if count() == 1:
        return
    somewhere = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32)
    torch.distributed.all_reduce(somewhere := somewhere.to(parameters[0].device))
    for parameter, there in zip(parameters, somewhere.tolist(), strict=True):
        if there:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(parameter.grad)


def add_up(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Sums over the processes, in fp64; a process whose share was empty brings nothing."""
    if count() == 1:
        return dict(metrics)
    parts = everybodys({name: float(value) for name, value in metrics.items()})
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def everybodys(value: Any) -> list[Any]:
    """What each process brings (numbers and texts), in the order of their ranks."""
    if count() == 1:
        return [value]
    gathered: list[Any] = [None] * count()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def firsts(value: Any) -> Any:
    """What the first process brings."""
    return everybodys(value)[0]
