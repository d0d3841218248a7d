"""Checkpoints inside a stage's folder: everything that the next step depends on, and nothing that can be derived again.

    checkpoint-<step>/tensors.safetensors    weights, optimizer moments, averages
    checkpoint-<step>/state.json             step, plain state (β, baselines, running moments), length of each table file,
                                             and under what conditions it was computed
    checkpoint-<step>/COMMIT                 last; a folder without it does not exist

Random streams have no state (they are named by step), and frozen weights come from the stage's inputs.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from rlhf_lab.errors import ResumeRefused
from rlhf_lab.store.faults import fault
from rlhf_lab.store.files import SCHEMA, TEMPORARY, commit, is_committed, mend, read_json, verify, write_atomically, write_json
from rlhf_lab.store.journal import PREFIX as JOURNAL

TABLES = ("steps.jsonl", "samples.jsonl")

log = logging.getLogger("rlhf_lab")


@dataclass(frozen=True)
class Checkpoint:
    """`step` steps are done; `state` is JSON; `conditions` are those that it was computed under, one after the other."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]
    conditions: Sequence[Mapping[str, Any]] = ()


def write_checkpoint(stage_folder: Path, checkpoint: Checkpoint) -> None:
    """Writes it, marks it complete, and only then removes the older ones."""
    folder = stage_folder / f"checkpoint-{checkpoint.step:08d}"
    tables = table_lengths(stage_folder)
    fault("checkpoint.begin", folder)
    if folder.exists():
        shutil.rmtree(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    write_atomically(folder / "tensors.safetensors", save(tensors))
    write_json(
        folder / "state.json",
        {
            "schema": SCHEMA,
            "step": checkpoint.step,
            "state": checkpoint.state,
            "tables": tables,
            "conditions": list(checkpoint.conditions),
        },
    )
    commit(folder)
    for old in stage_folder.glob("checkpoint-*"):
        if old != folder:
            fault("checkpoint.remove", old)
            shutil.rmtree(old)


def table_lengths(stage_folder: Path) -> dict[str, int]:
    """In bytes, of rows that are safely on the disk."""
    fault("checkpoint.tables", stage_folder)
    lengths = {}
    for path in filter(Path.is_file, map(stage_folder.joinpath, TABLES)):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        lengths[path.name] = path.stat().st_size
    return lengths


def newest_checkpoint(stage_folder: Path) -> Checkpoint | None:
    """The last complete one. Rows that were written after it are cut off the tables.

    Raises ResumeRefused for one that a newer rlhf_lab wrote.
    """
    folder = newest_complete(stage_folder)
    if folder is None:
        return None
    saved = read_json(folder / "state.json")
    cut_tables(stage_folder, saved["tables"])
    return Checkpoint(saved["step"], load((folder / "tensors.safetensors").read_bytes()), saved["state"], saved["conditions"])


def newest_complete(stage_folder: Path) -> Path | None:
    """Its folder; torn ones that are newer are set aside."""
    for folder in sorted(stage_folder.glob("checkpoint-*"), reverse=True):
        wrong = defects(folder, stage_folder)
        if not wrong:
            return folder
        quarantine(folder, wrong)
    return None


def defects(folder: Path, stage_folder: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing is."""
    if not is_committed(folder):
        return "it was not finished"
    if broken := verify(folder):
        return f"{', '.join(broken)} changed on the disk"
    saved = read_json(folder / "state.json")
    if saved["schema"] > SCHEMA:
        raise ResumeRefused(
            f"{folder} was written by a newer rlhf_lab (schema {saved['schema']}, this one knows {SCHEMA}); resume it with that"
        )
    there = {name: (stage_folder / name).stat().st_size for name in TABLES if (stage_folder / name).is_file()}
    short = [name for name, length in saved["tables"].items() if there.get(name, 0) < length]
    return f"{', '.join(short)} lacks rows that it counts on" if short else ""


def quarantine(folder: Path, wrong: str) -> None:
    """Kept under another name until the stage is finished, the last one only."""
    for old in folder.parent.glob("torn-*"):
        shutil.rmtree(old)
    aside = folder.with_name(f"torn-{folder.name}")
    folder.rename(aside)
    log.warning("%s cannot be used, since %s; the stage goes on from an earlier one (kept as %s)", folder, wrong, aside.name)


def keep_only_resumable(stage_folder: Path) -> int | None:
    """Before a stage starts: what an earlier process left behind counts only as far as a complete checkpoint reaches.

    Returns the number of threads that the checkpoint was computed with; None where there is nothing to go on from.
    """
    for path in stage_folder.rglob(f".*{TEMPORARY}"):
        path.unlink()
    folder = newest_complete(stage_folder)
    if folder is not None:
        conditions = read_json(folder / "state.json")["conditions"]
        return conditions[-1]["threads"] if conditions else None
    for path in stage_folder.iterdir():
        if not path.name.startswith(JOURNAL):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def remove_checkpoints(stage_folder: Path) -> None:
    """After a stage is complete."""
    for kind in ("checkpoint-*", "torn-*"):
        for folder in stage_folder.glob(kind):
            shutil.rmtree(folder)


def cut_tables(stage_folder: Path, lengths: Mapping[str, int]) -> None:
    """Back to the rows that the checkpoint knows, so that no step has two."""
    for path in map(stage_folder.joinpath, TABLES):
        fault("checkpoint.cut", path)
        if path.name not in lengths:
            path.unlink(missing_ok=True)
        else:
            with open(path, "rb+") as file:
                mend(file, path)
                file.truncate(lengths[path.name])


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
