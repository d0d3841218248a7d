"""`plan` and `config`: what a spec comes to, before anything is computed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import Planned, json_option, planned, plugin_option, speaks_plainly, spec_arguments

SHOWN = 60  # runs that are listed; --json lists all


@click.command(
    epilog="""\b
Examples:
  rlhf-lab plan quickstart
  rlhf-lab plan kl.yaml rl.kl.beta=0.02,0.2 seeds=0,1 --json"""
)
@spec_arguments
@plugin_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for results.")
@json_option
@speaks_plainly
def plan(spec: Path, overrides: tuple[str, ...], plugin_files: tuple[Path, ...], out: Path | None, as_json: bool) -> int:
    """Show what a sweep consists of: runs, the stages they share, what is done, and how long the rest will take."""
    from rlhf_lab.running.runner import results_folder

    found = planned(spec, overrides, plugin_files)
    return show_plan(found, results_folder(found.sweep.file.experiment, out), as_json)


def show_plan(found: Planned, results: Path, as_json: bool) -> int:
    shown = as_data(found, results)
    if as_json:
        click.echo(json.dumps(shown))
        return 0
    from rlhf_lab.cli.progress import labels
    from rlhf_lab.terminal import one_line

    done = {run["run_id"] for run in shown["runs"] if run["done"]}
    for run_id, label in list(labels(found.plan).items())[:SHOWN]:
        click.echo(f"{run_id}  {'done   ' if run_id in done else 'to run '}  {one_line(label)}")
    if len(shown["runs"]) > SHOWN:
        click.echo(f"… and {len(shown['runs']) - SHOWN} more (--json lists all)")
    for line in (*stage_lines(shown["graph"]), *warnings(shown), total(shown), estimate_line(shown["estimate"])):
        click.echo(one_line(line))
    return 0


def as_data(found: Planned, results: Path) -> dict[str, Any]:
    """All that is to be shown of a plan, in JSON."""
    from rlhf_lab.running.changes import changes, lineage
    from rlhf_lab.running.forecast import forecast
    from rlhf_lab.running.pool import visible_gpus, width
    from rlhf_lab.running.runner import is_finished
    from rlhf_lab.store.files import is_committed

    sweep, plan, store = found.sweep, found.plan, results / "stages"
    finished = {run.run_id for run in plan.runs if is_finished(results, run)}
    workers, _ = width(sweep.file.resources, len(plan.runs) - len(finished), len(visible_gpus()))
    expected = forecast(plan, store, workers)
    used_by = Counter(stage.hash for run in plan.runs for stage in run.stages)
    graph = [
        {
            "name": stage.name,
            "kind": stage.component.name,
            "hash": stage.hash,
            "seed": stage.seed,
            "inputs": dict(stage.inputs),
            "runs": used_by[stage.hash],
            "done": is_committed(store / stage.hash),
            "seconds": expected.each.get(stage.hash),
        }
        for stage in plan.stage_hashes.values()
    ]
    return {
        "results": str(results),
        "arms": list(dict.fromkeys(run.arm for run in plan.runs)),
        "seeds": list(dict.fromkeys(run.seed for run in plan.runs)),
        "duplicates": plan.duplicates,
        "dropped": dict(plan.dropped),
        "stages": dict(Counter(stage["name"] for stage in graph)),
        "stages_done": dict(Counter(stage["name"] for stage in graph if stage["done"])),
        "graph": graph,
        "changed": lineage(changes(plan, store)),
        "estimate": {"seconds": expected.seconds, "workers": workers, "unknown": dict(expected.unknown)},
        "runs": [
            {
                "run_id": run.run_id,
                "arm": run.arm,
                "axes": dict(run.axes),
                "seed": run.seed,
                "done": run.run_id in finished,
                "stages": {stage.name: stage.hash for stage in run.stages},
            }
            for run in plan.runs
        ],
    }


def stage_lines(graph: list[dict[str, Any]]) -> list[str]:
    """A line for each stage of the spec: how many there are of it, what they read, and how many runs share one."""
    names = {stage["hash"]: stage["name"] for stage in graph}
    lines = []
    for name in dict.fromkeys(names.values()):
        same = [stage for stage in graph if stage["name"] == name]
        inputs = {names[hash] for stage in same for hash in stage["inputs"].values()}
        reads = [other for other in dict.fromkeys(names.values()) if other in inputs]
        most = max(stage["runs"] for stage in same)
        told = [f"stage {name}: {len(same)} to compute" if not any(s["done"] for s in same) else ready(name, same)]
        told += [f"reads {', '.join(reads)}"] if reads else []
        told += [f"shared by {'up to ' if len(same) > 1 else ''}{most} runs"] if most > 1 else []
        lines.append("; ".join(told))
    return lines


def ready(name: str, stages: list[dict[str, Any]]) -> str:
    done = sum(stage["done"] for stage in stages)
    return f"stage {name}: {len(stages) - done} to compute, {done} done"


def warnings(shown: Mapping[str, Any]) -> list[str]:
    """What was dropped and why, and what was computed by other code."""
    lines = [f"dropped {n} duplicate{'s' if n > 1 else ''}: {why}" for why, n in shown["dropped"].items()]
    for hash, change in shown["changed"].items():
        parts = ", ".join(change["sources"])
        lines.append(f"stage {change['stage']} {hash} was computed with another source of {parts}; see run --allow-changed")
    return lines


def total(shown: Mapping[str, Any]) -> str:
    done, there = sum(run["done"] for run in shown["runs"]), shown["stages_done"]
    counts = (f"{n} {name}" + (f" ({there[name]} done)" if name in there else "") for name, n in shown["stages"].items())
    return f"{len(shown['runs'])} runs ({done} done, {shown['duplicates']} duplicates dropped); stages: {', '.join(counts)}"


def estimate_line(estimate: Mapping[str, Any]) -> str:
    """How long it takes, as far as stages of the same size have been measured."""
    with_workers = f"with {estimate['workers']} worker{'s' if estimate['workers'] > 1 else ''}"
    if not estimate["unknown"]:
        return f"estimated time: {duration(estimate['seconds'])} {with_workers}"
    unknown = ", ".join(f"{n} {name}" for name, n in estimate["unknown"].items())
    known = f"; the rest takes {duration(estimate['seconds'])} {with_workers}" if estimate["seconds"] else ""
    return f"estimated time: unknown, for nothing of the size of {unknown} is finished here{known}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@click.command(
    epilog="""\b
Example:
  rlhf-lab config quickstart rl.kl.beta=0.2 > mine.yaml"""
)
@spec_arguments
@plugin_option
@json_option
@speaks_plainly
def config(spec: Path, overrides: tuple[str, ...], plugin_files: tuple[Path, ...], as_json: bool) -> int:
    """Print the resolved spec: defaults, presets and overrides written out. It is a spec that runs the same.

    With --json the configuration of each distinct run.
    """
    from rlhf_lab.cli.progress import labels
    from rlhf_lab.declaration.resolved import resolved_spec
    from rlhf_lab.terminal import json_text

    found = planned(spec, overrides, plugin_files)
    if as_json:
        names = labels(found.plan)
        click.echo(json_text({names[run.run_id]: run.config.model_dump(mode="json") for run in found.plan.runs}, indent=1))
    else:
        click.echo(resolved_spec(found.sweep, found.plan.registry), nl=False)
    return 0
