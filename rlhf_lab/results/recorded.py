"""Runs that were planned before, from what is recorded of them: to compute them again without the command that began them.

A results folder may come from anybody, so nothing in it is a consent: code that it names, hosts and files outside the
folder of its spec have to be named again by the person who gives the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhf_lab.declaration.consent import Consent, require
from rlhf_lab.declaration.run_config import RunConfig, validate_run
from rlhf_lab.declaration.sweep import Sweep, SweepFile
from rlhf_lab.errors import DataError, SpecError
from rlhf_lab.registry import Registry, discover
from rlhf_lab.results.folder import planned_ids, read
from rlhf_lab.running.plan import Plan, PlannedRun, fingerprint_reader, planner


def record_of(results: Path, run_id: str) -> dict[str, Any]:
    """run.json. Raises DataError where there is none."""
    file = results / "runs" / run_id / "run.json"
    if not (run := read(file)):
        raise DataError(f"{file} cannot be read, so nobody knows what the run was")
    return run


def refuse_unnamed_plugins(run: Mapping[str, Any], plugin_files: Sequence[Path]) -> None:
    """Raises SpecError where a run used a plugin file that is not among those named on the command line."""
    named = {str(path.resolve()) for path in plugin_files}
    for path in run.get("plugin_files", []):
        if path not in named:
            raise SpecError(f"this run used the plugin file {path}; if you trust it, add --plugin {path} to the command")


def recorded_config(
    run: Mapping[str, Any], registry: Registry, consent: Consent, chosen: dict[Any, Any] | None = None
) -> RunConfig:
    """The run's configuration, validated by the plugins of now. Raises SpecError."""
    try:
        config = validate_run(run["config"], registry, chosen)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise SpecError(
            f"run {run['run_id']} is not valid any more: {place}: {first['msg']}; was it made by another version, or a plugin?"
        ) from None
    require([config], Path(run["spec_folder"]), consent)
    return config


def planned_before(results: Path, plugin_files: Sequence[Path], consent: Consent) -> tuple[Sweep, Plan]:
    """The sweep that plan.json lists. Raises SpecError where a run would not be the same run any more."""
    registry, chosen = discover(plugin_files), {}
    planners: dict[str, Any] = {}
    runs = []
    for run_id in planned_ids(results):
        run = record_of(results, run_id)
        refuse_unnamed_plugins(run, plugin_files)
        config, folder = recorded_config(run, registry, consent, chosen), run["spec_folder"]
        plan = planners.setdefault(folder, planner(registry, fingerprint_reader(Path(folder))))
        stages = plan(config, run["seed"])
        if {stage.name: stage.hash for stage in stages} != run["stages"]:
            raise SpecError(f"data, plugins or versions changed since run {run_id} was planned; give the run command again")
        runs.append(PlannedRun(run_id, run["arm"], run["axes"], run["seed"], config, run["config"], stages))
    written = read(results / "plan.json")
    data = {"experiment": written["experiment"], "base": {}, "resources": written.get("resources") or {}}
    file = SweepFile.model_validate(data, context={"registry": registry})
    return Sweep(file, Path(run["spec_folder"]), [], consent=consent), Plan(tuple(runs), registry=registry)
