"""`run`: from a spec to tables."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import json_option, planned, plugin_option, speaks_plainly, spec_arguments
from rlhf_lab.cli.plan import show_plan


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
@click.option(
    "--allow-changed",
    is_flag=True,
    help="Keep stages that were computed with other code under the same version, and go on from their checkpoints; "
    "plan.json and stage.json say so.",
)
@click.option("--fail-fast", is_flag=True, help="Stop when a run has failed (resources.fail_fast).")
@click.option("--join", is_flag=True, help="Share the runs with the process that is working on the same results.")
@json_option
@speaks_plainly
def run(
    spec: Path,
    overrides: tuple[str, ...],
    plugin_files: tuple[Path, ...],
    out: Path | None,
    quiet: bool,
    dry_run: bool,
    allow_changed: bool,
    fail_fast: bool,
    join: bool,
    as_json: bool,
) -> int:
    """Run a sweep. The same command resumes it, extends it, or does nothing.

    SPEC is a spec file, or the name of an experiment that ships with the package.
    """
    from rlhf_lab.running.changes import changes, lineage, refuse
    from rlhf_lab.running.drive import Halt
    from rlhf_lab.running.runner import is_finished, results_folder, run_sweep

    found = planned(spec, (*overrides, *(["resources.fail_fast=true"] if fail_fast else [])), plugin_files)
    sweep, plan, path = found
    results = results_folder(sweep.file.experiment, out)
    if dry_run:
        return show_plan(found, results, as_json)
    changed = changes(plan, results / "stages")
    if not allow_changed:
        refuse(changed)
    files, text = [file.resolve() for file in plugin_files], path.read_text(encoding="utf-8")
    reused = sum(is_finished(results, run) for run in plan.runs)
    with listener(plan, reused, quiet or as_json) as listen, Halt().on_signals() as halt:
        outcome = run_sweep(sweep, plan, results, files, text, listen, halt, join, lineage(changed) if allow_changed else None)
    report(outcome, as_json, quiet)
    if halt.signal:
        return 128 + halt.signal
    return 75 if halt.paused else 1 if outcome.failed else 0


def listener(plan: Any, reused: int, quiet: bool) -> Any:
    from rlhf_lab.cli.progress import Bars, Lines

    if quiet:
        return contextlib.nullcontext(lambda run_id, event: None)
    return Bars(plan, reused) if sys.stderr.isatty() else Lines(plan, reused)


def report(outcome: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        click.echo(
            json.dumps(
                {
                    "results": str(outcome.results),
                    "done": outcome.done,
                    "reused": outcome.reused,
                    "failed": outcome.failed,
                    "interrupted": outcome.interrupted,
                }
            )
        )
        return
    for run_id, error in outcome.failed.items():
        folder = outcome.results / "runs" / run_id
        traceback = folder / "traceback.txt"
        click.echo(f"{run_id} failed: {error}  ({traceback if traceback.is_file() else folder / 'log.txt'})", err=True)
    if not quiet:
        click.echo(
            f"{len(outcome.done)} runs done, {len(outcome.reused)} reused, {len(outcome.failed)} failed"
            + (f", {len(outcome.interrupted)} stopped and saved" if outcome.interrupted else "")
            + f": {outcome.results}"
        )
