"""A results folder as it is at this moment, also while a sweep writes it: files are read whole or not at all.

Nothing here writes, locks or waits, and nothing needs the plugins that the sweep was run with.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lab.declaration.yaml_lines import suggest
from rlhf_lab.errors import DataError, SpecError
from rlhf_lab.store.files import is_committed
from rlhf_lab.store.leases import Owner, holder

PENDING, RUNNING, DONE, INTERRUPTED = "pending", "running", "done", "interrupted"
UNFINISHED = (PENDING, RUNNING, INTERRUPTED)
TAIL = 1 << 16  # bytes; rows are some hundred bytes long


@dataclass(frozen=True)
class RunView:
    """One run as its files show it. `eta` is of the stage at work, in seconds; NaN is what is not known."""

    run_id: str
    arm: str
    axes: Mapping[str, Any]
    seed: int
    status: str
    stages: Mapping[str, Path]
    stage: str = ""
    done: int = 0
    total: int = 0
    step: float = math.nan
    kl: float = math.nan
    reward: float = math.nan
    eta: float = math.nan
    seconds: float = math.nan
    error: str = ""
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """Arm, axes, seed."""
        axes = (f"{axis.rsplit('.', 1)[-1]}={value}" for axis, value in self.axes.items())
        return " ".join(part for part in (self.arm, *axes, f"seed={self.seed}") if part)

    def row(self) -> dict[str, Any]:
        """What `--json` says of it: NaN is null."""
        keys = ("run_id", "arm", "axes", "seed", "status", "stage", "done", "total", "step", "kl", "reward", "eta", "seconds")
        row = {key: getattr(self, key) for key in (*keys, "error")}
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


# ---------------------------------------------------------------------------------------------------------------
# Folders


def runs_root(root: Path | None = None) -> Path:
    """Where results folders are: what was asked for, RLHF_LAB_RUNS_DIR, or ./results."""
    return Path(root or os.environ.get("RLHF_LAB_RUNS_DIR") or "results")


def is_results(folder: Path) -> bool:
    return (folder / "plan.json").is_file()


def results_folders(root: Path) -> list[Path]:
    """Every results folder in a folder; the folder itself if it is one."""
    if is_results(root):
        return [root]
    try:
        return sorted(folder for folder in root.iterdir() if is_results(folder))
    except OSError:
        return []


def find_results(name: str | Path) -> Path:
    """A results folder by its path, or by the name of its experiment. Raises SpecError where it is none."""
    path = Path(name)
    inner = runs_root() / path
    for folder in (path, inner):
        if is_results(folder):
            return folder.resolve()
    there = [folder.name for folder in results_folders(runs_root())]
    known = f"; {runs_root()} has {', '.join(there)}" if there else ""
    if path.exists() or inner.exists():
        raise SpecError(f"{path if path.exists() else inner} is no results folder: there is no plan.json in it{known}")
    raise SpecError(f"there is no results folder {name}{suggest(str(name), there) or known}")


def find_run(prefix: str, results: Path | None) -> tuple[Path, str]:
    """(results folder, run_id) of the only run whose id starts so, in one folder or in all. Raises SpecError."""
    folders = [results] if results else results_folders(runs_root())
    hits = [(folder, run.name) for folder in folders for run in run_folders(folder) if run.name.startswith(prefix)]
    where = str(results or runs_root())
    if not hits or not prefix:
        raise SpecError(f"no run in {where} has an id that starts with {prefix!r}; `rlhf-lab status` lists them")
    if len(hits) > 1:
        said = ", ".join(f"{run_id} ({folder.name})" for folder, run_id in hits[:5])
        raise SpecError(f"{prefix!r} is the beginning of {len(hits)} runs: {said}{', …' if len(hits) > 5 else ''}")
    return hits[0]


def run_folders(results: Path) -> list[Path]:
    """Of every run that was ever planned there, whatever the plan says now."""
    return sorted(file.parent for file in (results / "runs").glob("*/run.json"))


def planned_ids(results: Path) -> list[str]:
    plan = read(results / "plan.json")
    if not plan:
        raise DataError(f"{results / 'plan.json'} cannot be read; run the spec again, which writes it anew")
    return list(plan["runs"])


# ---------------------------------------------------------------------------------------------------------------
# Runs


def read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, or (for files that are not replaced atomically) none yet."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def view(results: Path) -> list[RunView]:
    """The planned runs, in the order of the plan."""
    views = (run_view(results / "runs" / run_id) for run_id in planned_ids(results))
    return [run for run in views if run is not None]


def drivers(results: Path) -> list[Owner]:
    """The processes that run the sweep just now: the one that began, and those that joined it."""
    targets = [results / "driver", *(folder / "driver" for folder in run_folders(results))]
    return list(dict.fromkeys(owner for owner in map(holder, targets) if owner))


def run_view(folder: Path) -> RunView | None:
    """What is known of a run; None if it is not there."""
    run, status, progress = (read(folder / f"{name}.json") for name in ("run", "status", "progress"))
    if not run:
        return None
    stages = stage_folders(folder.parents[1], run)
    state = state_of(status, [folder / "driver", *stages.values()])
    at = stage_at(stages, state, progress)
    return RunView(
        run_id=run["run_id"],
        arm=run["arm"],
        axes=run["axes"],
        seed=run["seed"],
        status=state,
        stages=stages,
        stage=at,
        **how_far(progress, at),
        **last_row(list(reversed(stages.values()))),
        eta=eta(folder / "progress.json", folder / "status.json", progress) if state == RUNNING else math.nan,
        seconds=status.get("seconds", math.nan),
        error=status.get("error", ""),
        record={**run, "status": status},
    )


def stage_folders(results: Path, run: Mapping[str, Any]) -> dict[str, Path]:
    """Of the stages of a run; in the results folder itself where that was moved, or came from another machine."""
    store = Path(run["store"]) if Path(run["store"]).is_dir() else results / "stages"
    return {name: store / hash for name, hash in run["stages"].items()}


def state_of(status: Mapping[str, Any], leases: Sequence[Path]) -> str:
    """`running` only if somebody is there to run it: a process that was killed could not write that it ended."""
    state = status.get("status", PENDING)
    return INTERRUPTED if state == RUNNING and not any(map(holder, leases)) else state


def stage_at(stages: Mapping[str, Path], state: str, progress: Mapping[str, Any]) -> str:
    """The stage that is computed now, or was last: the first that is not there yet, the last if all are."""
    missing = [name for name, folder in stages.items() if not is_committed(folder)]
    if state == PENDING:
        return ""
    said = progress.get("stage")
    return said if said in missing else next(iter(missing), next(reversed(stages), ""))


def how_far(progress: Mapping[str, Any], stage: str) -> dict[str, int]:
    fits = progress.get("stage") == stage
    return {key: int(progress.get(key, 0)) if fits else 0 for key in ("done", "total")}


def eta(progress_file: Path, status_file: Path, progress: Mapping[str, Any]) -> float:
    """Seconds that the stage at work still needs, if it goes on as it went since the run began."""
    with contextlib.suppress(OSError):
        elapsed = progress_file.stat().st_mtime - status_file.stat().st_mtime
        done, total = progress.get("done", 0), progress.get("total", 0)
        if done and elapsed > 0:
            return max(0.0, elapsed / done * (total - done) - (time.time() - progress_file.stat().st_mtime))
    return math.nan


def last_row(folders: Sequence[Path]) -> dict[str, float]:
    """Step, KL and reward of the newest row that has a KL, in the first folder with such a row."""
    for folder in folders:
        for row in tail(folder / "steps.jsonl"):
            if row.get("split") in ("train", "validation") and isinstance(row.get("kl"), int | float):
                return {"step": number(row.get("step")), "kl": number(row["kl"]), "reward": number(row.get("reward_proxy"))}
    return {}


def number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def tail(path: Path) -> Iterator[dict[str, Any]]:
    """The last whole rows of a table that may be growing, newest first."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return
    for line in reversed(lines if size <= TAIL else lines[1:]):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def counts(runs: Sequence[RunView]) -> dict[str, int]:
    """How many runs are in each state, those that matter first."""
    order = (DONE, RUNNING, PENDING, INTERRUPTED)
    found = sorted({run.status for run in runs}, key=lambda state: order.index(state) if state in order else len(order))
    return {state: sum(run.status == state for run in runs) for state in found}
