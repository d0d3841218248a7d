"""Under what conditions a stage is computed, and how far its numbers are claimed to be bitwise repeatable.

An interrupted stage has the same tables and weights as an undisturbed one, byte for byte, if all of it was computed with the
same torch, device class, number of threads, precision and code (PyTorch promises no more: "not guaranteed across releases,
platforms or devices"), and if the device's algorithms are deterministic. Each checkpoint says what its were.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlhf_lab import processes
from rlhf_lab.errors import ResumeRefused

if TYPE_CHECKING:
    from rlhf_lab.store.checkpoint import Checkpoint


def conditions_of(device: torch.device, precision: str, sources: Mapping[str, str]) -> dict[str, Any]:
    """Those of this process, in JSON; `sources` are hashes of the plugins' code."""
    return {
        "torch": torch.__version__,
        "device": device_class(device),
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "precision": precision,
        "deterministic": device.type == "cpu" or torch.are_deterministic_algorithms_enabled(),
        "code": {"rlhf_lab": code_of_the_core(), **sources},
    }


def device_class(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    capability = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return f"{device.type} ({platform.machine()} {capability})"


@cache
def code_of_the_core() -> str:
    """A hash of the package's own files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def bitwise(conditions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a stage computed under these, one after the other, is claimed to be repeatable to the byte under the first."""
    return len(conditions) == 1 and conditions[0]["deterministic"]


def checked_to_be_the_same(
    found: Checkpoint, now: dict[str, Any], stage: str, *, allow_changed: bool
) -> list[Mapping[str, Any]]:
    """The conditions of what will come out. Raises ResumeRefused where they changed, unless that is allowed."""
    if not found.conditions or found.conditions[-1] == now:
        return list(found.conditions) or [now]
    if not allow_changed:
        before = found.conditions[-1]
        changed = [name for name in now if before.get(name) != now[name]]
        raise ResumeRefused(
            f"stage {stage} stopped after step {found.step} under {described(before, changed, now)} and would go on under "
            f"{described(now, changed, before)}, which does not give the numbers of an undisturbed run; "
            "go back to the former, or accept it with --allow-changed (stage.json will say so)"
        )
    return [*found.conditions, now]


def described(these: Mapping[str, Any], names: Sequence[str], others: Mapping[str, Any]) -> str:
    """Only what differs: torch 2.13.0, threads 2, the code of objective/ppo_clip."""
    said = [f"{name} {these.get(name)}" for name in names if name != "code"]
    if "code" in names:
        here, there = these.get("code", {}), others.get("code", {})
        said += [f"{part} {hash[:8]}" for part, hash in sorted(here.items()) if there.get(part) != hash]
    return ", ".join(said) or "other code"


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Inside, torch computes with so many threads: a stage that goes on has as many as it began with."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
