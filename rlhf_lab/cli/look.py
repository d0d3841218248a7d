"""`status`, `ls` and `show`: what is there, read from files, also while a sweep writes them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rlhf_lab.cli.conventions import json_option, print_table, results_argument, results_option, speaks_plainly
from rlhf_lab.errors import SpecError
from rlhf_lab.terminal import json_text, one_line, printable

COLUMNS = ("run", "arm, axes, seed", "status", "stage", "done", "step", "KL", "reward", "ETA")


@click.command(
    epilog="""\b
Examples:
  rlhf-lab status quickstart
  rlhf-lab status results/quickstart --watch
  rlhf-lab status quickstart --json"""
)
@results_argument
@click.option("--watch", is_flag=True, help="Keep looking until no run is at work; Ctrl-C ends it, and stops no run.")
@click.option("--every", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, help="Seconds between two looks.")
@json_option
@speaks_plainly
def status(results: str, watch: bool, every: float, as_json: bool) -> int:
    """Show where each run of a sweep is: stage, step, KL, reward, time left.

    RESULTS is a results folder, or the name of an experiment under ./results (RLHF_LAB_RUNS_DIR).
    """
    from rlhf_lab.results.folder import find_results

    folder = find_results(results)
    if watch and not as_json and sys.stdout.isatty():
        watch_screen(folder, every)
    else:
        show_status(folder, as_json)
        while watch and at_work(folder):
            time.sleep(every)
            show_status(folder, as_json)
    return 0


def at_work(folder: Path) -> bool:
    from rlhf_lab.results.folder import RUNNING, drivers, view

    return bool(drivers(folder)) or any(run.status == RUNNING for run in view(folder))


def show_status(folder: Path, as_json: bool) -> None:
    from rlhf_lab.results.folder import counts, view

    runs = view(folder)
    if as_json:
        said = {"results": str(folder), "at_work": at_work(folder), "counts": counts(runs), "runs": [run.row() for run in runs]}
        click.echo(json_text(said))
        return
    print_table(list(COLUMNS), [cells(run) for run in runs])
    click.echo(summary(folder, runs))


def cells(run: Any) -> list[str]:
    """One line of the table."""
    done = f"{run.done}/{run.total}" if run.total else ""
    numbers = [figure(run.step, "d"), figure(run.kl, ".2f"), figure(run.reward, ".3f")]
    return [run.run_id[:8], one_line(run.label), one_line(run.status), one_line(run.stage), done, *numbers, clock(run.eta)]


def figure(value: float, form: str) -> str:
    """A number; nothing where there is none."""
    if math.isnan(value):
        return ""
    return str(int(value)) if form == "d" else f"{value:{form}}"


def clock(seconds: float) -> str:
    """`42s`, `3m05s`, `2h10m`."""
    if not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}h{minutes_left:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def summary(folder: Path, runs: Sequence[Any]) -> str:
    """`quickstart: 9 runs: 6 done, 2 running, 1 pending; about 3m05s left`."""
    from rlhf_lab.results.folder import counts

    states = ", ".join(f"{n} {one_line(state)}" for state, n in counts(runs).items())
    left = time_left(runs)
    return f"{folder.name}: {len(runs)} runs: {states}{f'; about {clock(left)} left' if math.isfinite(left) else ''}"


def time_left(runs: Sequence[Any]) -> float:
    """Seconds until all are done, if the others take what the median of those that are done took; NaN if nobody knows."""
    from statistics import median

    from rlhf_lab.results.folder import DONE, PENDING, RUNNING

    took = [run.seconds for run in runs if run.status == DONE and math.isfinite(run.seconds)]
    running = [run for run in runs if run.status == RUNNING]
    waiting = sum(run.status == PENDING for run in runs)
    if not running or (waiting and not took):
        return math.nan
    now = max((run.eta for run in running if math.isfinite(run.eta)), default=math.nan)
    return now + (math.ceil(waiting / len(running)) * median(took) if waiting else 0.0)


def watch_screen(folder: Path, every: float) -> None:
    """A table that changes in place."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(status_table(folder, console.height - 4), refresh=True)
            if not at_work(folder):
                return
            time.sleep(every)


def status_table(folder: Path, height: int) -> Any:
    """As many runs as fit, those at work first; under it the summary."""
    from rich.table import Table
    from rich.text import Text

    from rlhf_lab.results.folder import DONE, PENDING, RUNNING, view

    runs = view(folder)
    order = {RUNNING: 0, PENDING: 2, DONE: 3}
    shown = sorted(runs, key=lambda run: order.get(run.status, 1))[: max(1, height)]
    more = f" (and {len(runs) - len(shown)} more)" if len(shown) < len(runs) else ""
    table = Table(*COLUMNS, box=None, pad_edge=False, caption=Text(summary(folder, runs) + more), caption_justify="left")
    for run in shown:
        table.add_row(*(Text(cell) for cell in cells(run)), style={RUNNING: "bold", DONE: "dim"}.get(run.status, ""))
    return table


# ---------------------------------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  rlhf-lab ls
  rlhf-lab ls /data/results --json"""
)
@click.argument("root", required=False)
@json_option
@speaks_plainly
def ls(root: str | None, as_json: bool) -> int:
    """List the experiments in a folder (default ./results, or RLHF_LAB_RUNS_DIR), and how far each is."""
    from rlhf_lab.results.folder import DONE, RUNNING, counts, results_folders, runs_root, view

    folder = runs_root(Path(root) if root else None)
    if not folder.is_dir():
        raise SpecError(f"there is no folder {folder}; `rlhf-lab run` makes it, or RLHF_LAB_RUNS_DIR says where results are")
    rows = []
    for results in results_folders(folder):
        states = counts(view(results))
        others = {state: n for state, n in states.items() if state not in (DONE, RUNNING)}
        written = max((path.stat().st_mtime for path in results.glob("runs/*/status.json")), default=math.nan)
        rows.append(
            {
                "experiment": results.name,
                "runs": sum(states.values()),
                "done": states.get(DONE, 0),
                "running": states.get(RUNNING, 0),
                "others": others,
                "changed": None if math.isnan(written) else time.strftime("%Y-%m-%d %H:%M", time.localtime(written)),
                "path": str(results),
            }
        )
    if as_json:
        click.echo(json_text({"root": str(folder), "experiments": rows}))
    elif not rows:
        click.echo(f"no results in {printable(folder)}", err=True)
    else:
        said = [{**row, "others": ", ".join(f"{n} {state}" for state, n in row["others"].items())} for row in rows]
        print_table(list(rows[0]), [[one_line("" if value is None else value) for value in row.values()] for row in said])
    return 0


# ---------------------------------------------------------------------------------------------------------------


@click.command(
    epilog="""\b
Examples:
  rlhf-lab show 3f2a
  rlhf-lab show 3f2a --results quickstart --samples 3"""
)
@click.argument("run_id", metavar="ID")
@results_option
@click.option("--samples", type=click.IntRange(0, 1000), default=0, help="Print so many of its newest samples.")
@json_option
@speaks_plainly
def show(run_id: str, results: str | None, samples: int, as_json: bool) -> int:
    """Show a run: what it is, how it ended, where each stage came from.

    ID is a run's id or the beginning of it; it is looked for in all results, unless --results says where.
    """
    from rlhf_lab.results.folder import find_results, find_run, run_view

    folder, found = find_run(run_id, find_results(results) if results else None)
    run = run_view(folder / "runs" / found)
    if run is None:
        raise SpecError(f"the run {found} in {folder} was removed just now")
    said = {**run.row(), "results": str(folder), **details(run), "samples": newest_samples(run, samples)}
    if as_json:
        click.echo(json_text(said))
    else:
        for line in described(said):
            click.echo(printable(line))
    return 0


def details(run: Any) -> dict[str, Any]:
    """What the record says besides: spec, code, versions, stages."""
    from rlhf_lab.results.folder import read
    from rlhf_lab.store.files import is_committed

    stages = []
    for name, folder in run.stages.items():
        stage = read(folder / "stage.json")
        kept = {key: stage.get(key) for key in ("seconds", "device", "threads", "bitwise")}
        stages.append({"stage": name, "hash": folder.name, "done": is_committed(folder), "folder": str(folder), **kept})
    known = run.record["status"]
    origin = {key: known[key] for key in ("device", "threads", "python", "packages", "host", "variables") if key in known}
    return {
        "stages": stages,
        "provenance": {**run.record.get("git", {}), **origin, "plugin_files": run.record.get("plugin_files", [])},
        "config": run.record["config"],
    }


def newest_samples(run: Any, n: int) -> list[dict[str, Any]]:
    from itertools import islice

    from rlhf_lab.results.folder import tail

    rows = (row for folder in reversed(run.stages.values()) for row in tail(folder / "samples.jsonl"))
    return list(islice(rows, n))


def described(said: dict[str, Any]) -> list[str]:
    """`show` as lines of text."""
    origin = said["provenance"]
    revision = origin.get("git_revision", "no git repository")[:12] + (" and changes" if origin.get("git_dirty") else "")
    versions = ", ".join(f"{name} {version}" for name, version in origin.get("packages", {}).items())
    axes = ", ".join(f"{axis} = {value}" for axis, value in said["axes"].items())
    lines = [
        f"run      {said['run_id']}  ({said['results']})",
        f"arm      {said['arm']}; seed {said['seed']}{'; ' + axes if axes else ''}",
        f"status   {said['status']}{', ' + clock(said['seconds']) if said['seconds'] else ''}",
        f"code     {revision}; {versions or 'versions not recorded yet'}",
        f"device   {origin.get('device', 'not recorded yet')}, {origin.get('threads', '?')} threads",
    ]
    if said["error"]:
        lines.append(f"error    {said['error']}")
    if said["kl"] is not None:
        reward = "" if said["reward"] is None else f", reward {said['reward']:.3f}"
        lines.append(f"newest   step {said['step']:.0f}: KL {said['kl']:.2f} nats{reward}")
    for stage in said["stages"]:
        state = f"{clock(stage['seconds'] or math.nan) or 'done'}" if stage["done"] else "not done"
        lines.append(f"stage    {stage['stage']}: {state}, {stage['folder']}")
    for sample in said["samples"]:
        rest = ", ".join(f"{key} {value}" for key, value in sample.items() if key not in ("prompt", "response"))
        lines += [
            "",
            f"[{one_line(rest)}]",
            f"x  {one_line(sample.get('prompt', ''))}",
            f"y  {one_line(sample.get('response', ''))}",
        ]
    return lines
