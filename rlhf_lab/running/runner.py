"""Runs a sweep: writes what each run needs, keeps warm workers busy, and puts the tables together.

The same command resumes, extends or does nothing: a stage that is in the store is never computed again.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_lab.declaration.sweep import Sweep
from rlhf_lab.errors import DataError, StorageError, SweepBusy
from rlhf_lab.results.tables import compact
from rlhf_lab.running.claims import Claims
from rlhf_lab.running.drive import Halt, Listen, Task, drive
from rlhf_lab.running.plan import Plan, PlannedRun, source_reader
from rlhf_lab.store.checkpoint import json_safe
from rlhf_lab.store.files import SCHEMA, is_committed, read_json, trouble, write_atomically, write_json
from rlhf_lab.store.leases import holder
from rlhf_lab.store.provenance import git_state, package_versions


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to. `failed` and `interrupted` map a run to what it says of its end."""

    results: Path
    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: dict[str, str] = field(default_factory=dict)


def results_folder(experiment: str, root: Path | None) -> Path:
    """<root>/<experiment>, root being --out, RLHF_LAB_RUNS_DIR or ./results."""
    return (root or Path(os.environ.get("RLHF_LAB_RUNS_DIR") or "results")).resolve() / experiment


def prepare(
    sweep: Sweep, plan: Plan, results: Path, plugin_files: Sequence[Path], allowed: Mapping[str, Any] | None = None
) -> None:
    """Writes the plan and a run.json for each run; a run that is finished keeps the revision that it was computed with.

    `allowed`, where `--allow-changed` was said, has the stages that were computed with other code than that of now.
    """
    git, resources, sources = git_state(sweep.folder), sweep.file.resources, source_reader(plan.registry)
    for run in plan.runs:
        file = results / "runs" / run.run_id / "run.json"
        computed_with = read_json(file).get("git", {}) if is_finished(results, run) else git
        write_if_new(
            file,
            {
                "run_id": run.run_id,
                "arm": run.arm,
                "axes": dict(run.axes),
                "seed": run.seed,
                "config": run.raw,
                "stages": {stage.name: stage.hash for stage in run.stages},
                "spec_folder": str(sweep.folder),
                "store": str(results / "stages"),
                "plugin_files": [str(path) for path in plugin_files],
                "consent": sorted(map(list, sweep.consent)),
                "git": computed_with,
                "checkpoint_every": resources.checkpoint_every,
                "memory_limit": resources.memory_limit,
                "allow_changed": allowed is not None,
                "sources": sources(run.config, run.stages),
            },
        )
    write_json(
        results / "plan.json",
        {
            "schema": SCHEMA,
            "experiment": sweep.file.experiment,
            "runs": [run.run_id for run in plan.runs],
            "packages": package_versions(),
            "resources": resources.model_dump(mode="json", exclude_none=True),
            **git,
            "computed_with_other_code": dict(allowed or {}),
            "resolved": {run.run_id: run.config.model_dump(mode="json") for run in plan.runs},
        },
    )


def write_if_new(file: Path, value: Mapping[str, Any]) -> None:
    """Leaves a file alone that says the same: others may be reading it, and ten thousand runs have as many."""
    if not file.is_file() or read_json(file) != json_safe(value):
        write_json(file, value)


def refuse_newer(results: Path) -> None:
    """Raises DataError for results that a newer rlhf_lab wrote, before anything in them is touched."""
    schema = read_json(results / "plan.json").get("schema", SCHEMA) if (results / "plan.json").is_file() else SCHEMA
    if schema > SCHEMA:
        raise DataError(
            f"{results} was written by a newer rlhf_lab (schema {schema}, this one knows {SCHEMA}); "
            "go on with that one, or choose another folder with --out"
        )


def is_finished(results: Path, run: PlannedRun) -> bool:
    folder = results / "runs" / run.run_id
    status = folder / "status.json"
    return (
        status.is_file()
        and (folder / "run.json").is_file()
        and read_json(status)["status"] == "done"
        and all(is_committed(results / "stages" / stage.hash) for stage in run.stages)
    )


def run_sweep(
    sweep: Sweep,
    plan: Plan,
    results: Path,
    plugin_files: Sequence[Path],
    spec_text: str,
    listen: Listen,
    halt: Halt | None = None,
    join: bool = False,
    allowed: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> Outcome:
    """Computes every run of the plan that is not finished. One run that fails does not stop the others.

    `only` names runs that are wanted, if not all are. Raises SweepBusy where another process works on the same results, unless
    `join`: then they share the runs.
    """
    refuse_newer(results)
    halt, resources = Halt() if halt is None else halt, sweep.file.resources
    reused = [run.run_id for run in plan.runs if is_finished(results, run)]
    wanted = {run.run_id for run in plan.runs} if only is None else set(only)
    todo = [task_of(results, run) for run in plan.runs if run.run_id in wanted - set(reused)]
    n_runs = len(plan.runs) if todo else 0  # also where few are left: with more threads each, their numbers would be others
    with (
        contextlib.redirect_stdout(sys.stderr),  # a cluster's library says what it likes; standard output is for the answer
        disk_trouble_said(results),
        fleet_for(resources, n_runs) as fleet,
        Claims() as claims,
        none_left_running(fleet, claims, todo),
    ):
        claim_sweep(results, claims, join)
        write_atomically(results / "spec.yaml", spec_text)
        prepare(sweep, plan, results, plugin_files, allowed)
        ends = drive(fleet, todo, resources, halt, claims, listen)
        compact(results)
    stopped = {run_id: status for run_id, status in ends.others.items() if status["status"] == "interrupted"}
    return Outcome(
        results,
        done=ends.done,
        reused=reused + ends.found_done,
        failed={run_id: status.get("error", "") for run_id, status in ends.others.items() if run_id not in stopped},
        interrupted={run_id: status.get("error", "") for run_id, status in stopped.items()},
    )


@contextlib.contextmanager
def disk_trouble_said(results: Path) -> Iterator[None]:
    """A disk that is full or broken, and results that cannot be written or were taken away, in one sentence."""
    try:
        yield
    except OSError as error:
        if not trouble(error) and not str(error.filename).startswith(str(results.parent)):
            raise
        raise StorageError(
            f"the sweep stopped, since {results} cannot be written ({error}); the same command goes on when it can"
        ) from error


@contextlib.contextmanager
def none_left_running(fleet: Any, claims: Claims, todo: Sequence[Task]) -> Iterator[None]:
    """Where a sweep ends at once (a second signal, an error), what it had in flight is killed, and says so."""
    try:
        yield
    except BaseException:
        flying = [task for task in todo if task.driver in claims.held]
        if flying:
            fleet.kill([task.folder for task in flying])
        for task in flying:
            with contextlib.suppress(OSError):
                if task.status().get("status") in (None, "running"):
                    write_json(task.folder / "status.json", {"status": "interrupted", "error": "the sweep was stopped at once"})
        raise


def task_of(results: Path, run: PlannedRun) -> Task:
    return Task(run.run_id, results / "runs" / run.run_id, tuple(results / "stages" / stage.hash for stage in run.stages))


@contextlib.contextmanager
def fleet_for(resources: Any, n_runs: int) -> Iterator[Any]:
    """The launcher's fleet, closed at the end; None where there is nothing to run."""
    if n_runs == 0:
        yield None
        return
    fleet = resources.launcher.open(resources, n_runs)
    try:
        yield fleet
    finally:
        fleet.close()


def claim_sweep(results: Path, claims: Claims, join: bool) -> None:
    """This process is the one that works on these results, or, if it joins, one of those that do."""
    results.mkdir(parents=True, exist_ok=True)
    if not claims.take(results / "driver") and not join:
        who = holder(results / "driver") or "another process"
        raise SweepBusy(f"{who} is working on {results}; wait for it, or share its runs with --join")
