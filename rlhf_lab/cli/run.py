"""`run`, `plan` and `config`: from a spec to a sweep."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import json_option, planned, plugin_option, speaks_plainly, spec_arguments


@click.command(
    epilog="""\b
Examples:
  rlhf-lab run quickstart
  rlhf-lab run experiments/quickstart/spec.yaml rl.kl.beta=0.05 seeds=0,1,2,3,4
  rlhf-lab run kl.yaml --plugin my_controller.py rl.kl=my_controller"""
)
@spec_arguments
@plugin_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for results (default ./results, or RLHF_LAB_RUNS_DIR).",
)
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--dry-run", is_flag=True, help="Only print what would run.")
@json_option
@speaks_plainly
def run(
    spec: Path,
    overrides: tuple[str, ...],
    plugin_files: tuple[Path, ...],
    out: Path | None,
    quiet: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run a sweep. The same command resumes it, extends it, or does nothing.

    SPEC is a spec file, or the name of an experiment that ships with the package.
    """
    from rlhf_lab.runner import is_finished, results_folder, run_sweep

    sweep, plan, path = planned(spec, overrides, plugin_files)
    results = results_folder(sweep.file.experiment, out)
    if dry_run:
        return show_plan(plan, results, as_json)
    reused = sum(is_finished(results, run) for run in plan.runs)
    with listener(plan, reused, quiet or as_json) as listen, until_terminated():
        outcome = run_sweep(
            sweep, plan, results, [file.resolve() for file in plugin_files], path.read_text(encoding="utf-8"), listen
        )
    report(outcome, as_json, quiet)
    return 1 if outcome.failed else 0


@contextlib.contextmanager
def until_terminated() -> Iterator[None]:
    """Inside, SIGTERM (a scheduler's way to stop a job) ends like Ctrl-C: workers stopped, tables written; exit code 143."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def listener(plan: Any, reused: int, quiet: bool) -> Any:
    from rlhf_lab.progress import Bars, Lines

    if quiet:
        return contextlib.nullcontext(lambda run_id, event: None)
    return Bars(plan, reused) if sys.stderr.isatty() else Lines(plan, reused)


def report(outcome: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {"results": str(outcome.results), "done": outcome.done, "reused": outcome.reused, "failed": outcome.failed}
            )
        )
        return
    for run_id, error in outcome.failed.items():
        folder = outcome.results / "runs" / run_id
        traceback = folder / "traceback.txt"
        click.echo(f"{run_id} failed: {error}  ({traceback if traceback.is_file() else folder / 'log.txt'})", err=True)
    if not quiet:
        click.echo(
            f"{len(outcome.done)} runs done, {len(outcome.reused)} reused, {len(outcome.failed)} failed: {outcome.results}"
        )


@click.command()
@spec_arguments
@plugin_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for results.")
@json_option
@speaks_plainly
def plan(spec: Path, overrides: tuple[str, ...], plugin_files: tuple[Path, ...], out: Path | None, as_json: bool) -> int:
    """Show what a sweep consists of: runs, and the stages they share."""
    from rlhf_lab.runner import results_folder

    sweep, plan, _ = planned(spec, overrides, plugin_files)
    return show_plan(plan, results_folder(sweep.file.experiment, out), as_json)


def show_plan(plan: Any, results: Path, as_json: bool) -> int:
    from collections import Counter

    from rlhf_lab.progress import labels
    from rlhf_lab.runner import is_finished
    from rlhf_lab.store import is_committed

    stages = Counter(stage.name for stage in plan.stage_hashes.values())
    there = Counter(stage.name for stage in plan.stage_hashes.values() if is_committed(results / "stages" / stage.hash))
    finished = {run.run_id for run in plan.runs if is_finished(results, run)}
    if as_json:
        click.echo(
            json.dumps(
                {
                    "results": str(results),
                    "duplicates": plan.duplicates,
                    "stages": dict(stages),
                    "stages_done": dict(there),
                    "runs": [
                        {
                            "run_id": run.run_id,
                            "arm": run.arm,
                            "axes": dict(run.axes),
                            "seed": run.seed,
                            "done": run.run_id in finished,
                            "stages": {s.name: s.hash for s in run.stages},
                        }
                        for run in plan.runs
                    ],
                }
            )
        )
        return 0
    for run_id, label in labels(plan).items():
        click.echo(f"{run_id}  {'done   ' if run_id in finished else 'to run '}  {label}")
    click.echo(
        f"{len(plan.runs)} runs ({len(finished)} done, {plan.duplicates} duplicates dropped); stages: "
        + ", ".join(f"{count} {name}" + (f" ({there[name]} done)" if there[name] else "") for name, count in stages.items())
    )
    return 0


@click.command()
@spec_arguments
@plugin_option
@speaks_plainly
def config(spec: Path, overrides: tuple[str, ...], plugin_files: tuple[Path, ...]) -> int:
    """Print the resolved spec of each distinct run, defaults included."""
    from rlhf_lab.progress import labels

    _, plan, _ = planned(spec, overrides, plugin_files)
    names = labels(plan)
    click.echo(
        json.dumps({names[run.run_id]: run.config.model_dump(mode="json") for run in plan.runs}, indent=1, ensure_ascii=False)
    )
    return 0
