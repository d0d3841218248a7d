"""Checkpoints inside a stage's folder: everything that the next step depends on, and nothing that can be derived again.

    checkpoint-<step>/tensors.safetensors    weights, optimizer moments, averages
    checkpoint-<step>/state.json             step, plain state (β, baselines, running moments), length of each table file
    checkpoint-<step>/COMMIT                 last; a folder without it does not exist

Random streams have no state (they are named by step), and frozen weights come from the stage's inputs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from rlhf_lab.store import commit, is_committed, read_json, verify, write_atomically, write_json

TABLES = ("steps.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class Checkpoint:
    """`step` steps are done; `state` is JSON."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def write_checkpoint(stage_folder: Path, checkpoint: Checkpoint) -> None:
    """Writes it, marks it complete, and only then removes the older ones."""
    folder = stage_folder / f"checkpoint-{checkpoint.step:08d}"
    if folder.exists():
        shutil.rmtree(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    write_atomically(folder / "tensors.safetensors", save(tensors))
    write_json(
        folder / "state.json", {"step": checkpoint.step, "state": checkpoint.state, "tables": table_lengths(stage_folder)}
    )
    commit(folder)
    for old in stage_folder.glob("checkpoint-*"):
        if old != folder:
            shutil.rmtree(old)


def table_lengths(stage_folder: Path) -> dict[str, int]:
    return {name: (stage_folder / name).stat().st_size for name in TABLES if (stage_folder / name).is_file()}


def newest_checkpoint(stage_folder: Path) -> Checkpoint | None:
    """The last complete one; torn ones are removed. Rows that were written after it are cut off the tables."""
    for folder in sorted(stage_folder.glob("checkpoint-*"), reverse=True):
        if is_committed(folder) and not verify(folder):
            saved = read_json(folder / "state.json")
            cut_tables(stage_folder, saved["tables"])
            return Checkpoint(saved["step"], load((folder / "tensors.safetensors").read_bytes()), saved["state"])
        shutil.rmtree(folder)
    return None


def keep_only_resumable(stage_folder: Path) -> None:
    """Before a stage starts: what an earlier process left behind counts only as far as a complete checkpoint reaches."""
    if newest_checkpoint(stage_folder) is None:
        for path in stage_folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_checkpoints(stage_folder: Path) -> None:
    """After a stage is complete."""
    for folder in stage_folder.glob("checkpoint-*"):
        shutil.rmtree(folder)


def cut_tables(stage_folder: Path, lengths: Mapping[str, int]) -> None:
    """Back to the rows that the checkpoint knows, so that no step has two."""
    for name in TABLES:
        if name not in lengths:
            (stage_folder / name).unlink(missing_ok=True)
        else:
            with open(stage_folder / name, "rb+") as file:
                file.truncate(lengths[name])


def optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """Every tensor of an optimizer's state, by parameter number and name."""
    return {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def json_safe(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that has been through JSON, so that what is resumed is what was saved."""
    return json.loads(json.dumps(state))
